"""The base model in a folder: whether the trainer's own forward can compute it, and its fingerprint."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from claas_trainer.errors import InputError
from claas_trainer.forward.transformer.adapters import AdapterMap
from claas_trainer.forward.weights.files import Checkpoint, fingerprint, read_header, sample
from claas_trainer.forward.weights.layout import block_parts, size_of, slices, stored_tensors
from claas_trainer.model.lora import AdapterWeights
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.errors import UnsupportedModelError
from claas_trainer.store.versions import StoredVersion


def check_decoder(shape: ModelShape, adapter: AdapterWeights, longest: int) -> None:
    """Checks that the trainer's own forward can compute this adapter on sequences of this many tokens.

    Raises:
        UnsupportedModelError: it can't, and the generic forward may.
        AdapterError: the adapter does not fit the base model.
    """
    if shape.sliding_window is not None and longest > shape.sliding_window:
        raise UnsupportedModelError(f"a sample has {longest} tokens and the sliding window is {shape.sliding_window}")
    tensors = {name: tensor.shape for name, tensor in adapter.tensors.items()}
    AdapterMap(shape, tensors, adapter.shape.rank, adapter.shape.alpha)


def base_fingerprint(folder: Path, shape: ModelShape | None) -> str:
    """A fingerprint of the base model without reading its weights. Raises WeightsError."""
    if shape is None:
        return f"headers:{_headers_digest(folder)}"
    checkpoint, blocks = Checkpoint(folder), block_parts(shape, torch.float32)
    nowhere = torch.empty(sum(map(size_of, blocks.values())), dtype=torch.uint8, device="meta")
    targets = stored_tensors(shape, blocks, slices(nowhere, blocks))
    stored = {name: checkpoint.find(name, target.shape) for name, target in targets}
    return f"tensors:{fingerprint({name: (found, sample(found)) for name, found in stored.items()})}"


def _headers_digest(folder: Path) -> str:
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        for name, stored in sorted(read_header(file).items()):
            digest.update(f"{file.name} {name} {stored.dtype} {stored.shape} {stored.start}\n".encode())
    return digest.hexdigest()


def check_base(parent: StoredVersion, found: str) -> None:
    """Checks that the parent was trained on this base model; its weights and moments are meaningless on another.
    Fingerprints of different kinds can't be compared.

    Raises:
        InputError: it was trained on another.
    """
    recorded = parent.record.local.base_fingerprint if parent.record.local else ""
    if recorded.partition(":")[0] == found.partition(":")[0] and recorded != found:
        raise InputError(
            f"model: version {parent.record.number} was trained on another base model ({recorded[:16]}...) than is"
            f" there now ({found[:16]}...); put that model back, or make a new adapter for this one"
        )
