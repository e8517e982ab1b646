"""From a checkpoint of external weights to a version's files."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from claas_contract.outcome import FailureReason
from claas_trainer.engines.tinker.external.download import Download, Sign
from claas_trainer.engines.tinker.external.peft import adapter_sizes, peft_files
from claas_trainer.errors import EngineError
from claas_trainer.model.shape import ModelShape
from claas_trainer.store.content import FileContent
from claas_trainer.store.record import ADAPTER_CONFIG_FILE

EXTERNAL_TTL_SECONDS = 3600
"""The shortest that the service takes: the weights are needed only until they are downloaded."""
_WIDEST_BYTES = 4
_HEADER_BYTES = 4 * 1024 * 1024


async def exported_files(sign: Sign, where: str, shape: ModelShape, rank: int) -> dict[str, FileContent]:
    """PEFT's two files of the external weights `where`, whose files' addresses `sign` gives. Raises TrainerError."""
    download = Download(sign, where)
    names = await download.names()
    weights = [name for name in names if name.endswith(".safetensors")]
    if ADAPTER_CONFIG_FILE not in names or not weights:
        raise _unreadable(where, f"there are {', '.join(names) or 'no files'}")
    most_bytes = _HEADER_BYTES + _WIDEST_BYTES * sum(a * b for a, b in adapter_sizes(shape, rank).values())
    with TemporaryDirectory() as scratch:
        config = Path(scratch, ADAPTER_CONFIG_FILE)
        await download.fetch(ADAPTER_CONFIG_FILE, config, _HEADER_BYTES)
        tensors: dict[str, Tensor] = {}
        for number, name in enumerate(weights):
            path = Path(scratch, f"{number}.safetensors")
            await download.fetch(name, path, most_bytes)
            tensors |= _tensors(path, name, where)
        return peft_files(_document(config, where), tensors, shape, rank, where)


def _tensors(path: Path, name: str, where: str) -> dict[str, Tensor]:
    """Mapped from the file, which may be deleted meanwhile."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError:
        raise _unreadable(where, f"{name} is no safetensors file") from None
    return tensors


def _document(path: Path, where: str) -> object:
    try:
        document: object = json.loads(path.read_bytes())
    except ValueError:
        raise _unreadable(where, f"{path.name} is no JSON") from None
    return document


def _unreadable(where: str, why: str) -> EngineError:
    return EngineError(
        FailureReason.INVALID_INPUT,
        f"spec.engine.tinker.export: the files of {where} are not those of a LoRA: {why}; leave export out",
    )
