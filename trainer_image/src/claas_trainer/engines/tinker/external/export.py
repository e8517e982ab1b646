"""From a checkpoint of external weights to a version's files."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from claas_bounded.waits import Deadline
from claas_contract.outcome import FailureReason
from claas_tinker_client.connection import TinkerConnection
from claas_tinker_client.faults import Subject
from claas_trainer.engines.tinker.external.download import Download, Sign, SignedFiles
from claas_trainer.engines.tinker.external.peft import adapter_sizes, exportable_shape, peft_files
from claas_trainer.engines.tinker.failures import service_failures
from claas_trainer.errors import EngineError
from claas_trainer.model.shape import ModelShape
from claas_trainer.store.content import FileContent
from claas_trainer.store.record import ADAPTER_CONFIG_FILE

EXTERNAL_TTL_SECONDS = 3600
"""The shortest that the service takes: the weights are needed only until they are downloaded."""
_WIDEST_BYTES = 4
_HEADER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Exporter:
    """Makes files of a saved step, in this attempt or one before it."""

    connection: TinkerConnection
    shape: ModelShape
    rank: int
    deadline: Deadline

    @classmethod
    def of(cls, connection: TinkerConnection, model: Path, rank: int, deadline: Deadline) -> Exporter:
        """`model`: the base model's folder. Raises InputError if its adapters can't be exported."""
        return cls(connection, exportable_shape(model), rank, deadline)

    @property
    def size_bytes(self) -> int:
        """Most that the files take."""
        return _most_bytes(self.shape, self.rank)

    async def files(self, state_path: str) -> dict[str, FileContent]:
        """PEFT's two files of the weights in a checkpoint. Raises TrainerError.

        They are exported by a run of their own, which takes no step: so an attempt that finds the step saved exports
        it likewise, and the numbers of the requests of the run that took it stay as they are.
        """
        name = state_path.rpartition("/")[2]
        with service_failures():
            client = await self.connection.run_from(state_path, self.deadline)
            saved = await self.connection.call(
                f"to export {state_path}",
                lambda: client.save_weights_external(name, ttl_seconds=EXTERNAL_TTL_SECONDS),
                self.deadline,
            )

            async def sign() -> SignedFiles:
                rest = await self.connection.rest(self.deadline)
                told = await self.connection.call(
                    f"for the files of {saved.path}",
                    lambda: rest.get_external_weights_urls(saved.path),
                    self.deadline,
                    Subject.CHECKPOINT,
                )
                return SignedFiles(told.urls, told.expires)

            try:
                async with asyncio.timeout(self.deadline.left()):
                    return await exported_files(sign, saved.path, self.shape, self.rank)
            except TimeoutError:
                raise EngineError(
                    FailureReason.SERVICE_UNREACHABLE,
                    f"the files of {saved.path} were not downloaded before the step's time was over; raise"
                    " spec.engine.tinker.stepTimeoutSeconds",
                ) from None


async def exported_files(sign: Sign, where: str, shape: ModelShape, rank: int) -> dict[str, FileContent]:
    """PEFT's two files of the external weights `where`, whose files' addresses `sign` gives. Raises TrainerError."""
    download = Download(sign, where)
    names = await download.names()
    weights = [name for name in names if name.endswith(".safetensors")]
    if ADAPTER_CONFIG_FILE not in names or not weights:
        raise _unreadable(where, f"there are {', '.join(names) or 'no files'}")
    most_bytes = _most_bytes(shape, rank)
    with TemporaryDirectory() as scratch:
        config = Path(scratch, ADAPTER_CONFIG_FILE)
        await download.fetch(ADAPTER_CONFIG_FILE, config, _HEADER_BYTES)
        tensors: dict[str, Tensor] = {}
        for number, name in enumerate(weights):
            path = Path(scratch, f"{number}.safetensors")
            await download.fetch(name, path, most_bytes)
            tensors |= _tensors(path, name, where)
        return peft_files(_document(config, where), tensors, shape, rank, where)


def _most_bytes(shape: ModelShape, rank: int) -> int:
    return _HEADER_BYTES + _WIDEST_BYTES * sum(a * b for a, b in adapter_sizes(shape, rank).values())


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
