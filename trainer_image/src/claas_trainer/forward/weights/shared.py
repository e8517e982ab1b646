"""The weights of a running vLLM, mapped into this process: nothing is copied or read from disk."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from claas_trainer.forward.weights.cuda_ipc import HANDLE_BYTES, MappedAllocation
from claas_trainer.forward.weights.files import StoredTensor, fingerprint
from claas_trainer.forward.weights.layout import HEAD, layer_shapes
from claas_trainer.forward.weights.read_only import ReadOnlyTensor
from claas_trainer.forward.weights.source import LayerWeights, WeightSource
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.errors import WeightsError

_LAYER_NAMES = {
    "input_norm": "input_layernorm.weight",
    "qkv": "self_attn.qkv_proj.weight",
    "qkv_bias": "self_attn.qkv_proj.bias",
    "o": "self_attn.o_proj.weight",
    "post_norm": "post_attention_layernorm.weight",
    "gate_up": "mlp.gate_up_proj.weight",
    "down": "mlp.down_proj.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}
_EMBEDDING, _NORM = "model.embed_tokens.weight", "model.norm.weight"
_STORED_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16"}
_SAMPLE_BYTES = 64


@dataclass(frozen=True)
class SharedTensor:
    """One exported parameter of vLLM, at `offset` bytes in the allocation that `handle` opens."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    handle: bytes
    offset: int


def parse_export(document: Mapping[str, object]) -> dict[str, SharedTensor]:
    """Parses the tensors of an export (`claas_vllm.WeightExport`), by name.

    Raises:
        WeightsError: vLLM refuses to share, with its reason; or the document is not an export.
    """
    if document.get("refusal"):
        raise WeightsError(f"vLLM's weights can't be shared: {document['refusal']}")
    listed = document.get("tensors")
    if not isinstance(listed, list) or not listed:
        raise WeightsError(
            "vLLM's answer is not an export of weights; is its worker extension claas_vllm.WeightExport?"
        )
    return {tensor.name: tensor for tensor in map(_parsed, listed)}


def _parsed(entry: object) -> SharedTensor:
    match entry:
        case {
            "name": str(name),
            "shape": [*shape],
            "dtype": ("bfloat16" | "float16") as dtype,
            "handle": str(handle),
            "offset": int(offset),
        } if all(isinstance(width, int) for width in shape):
            try:
                raw = base64.b64decode(handle, validate=True)
            except binascii.Error:
                raw = b""
            if len(raw) == HANDLE_BYTES:
                return SharedTensor(name, tuple(shape), getattr(torch, dtype), raw, offset)
    raise WeightsError("vLLM's export has an entry that can't be read; use companion and trainer of one release")


class SharedWeights(WeightSource):
    """`WeightSource` over vLLM's own parameters; all its tensors are read-only.

    Using a mapping after vLLM has ended is undefined behaviour: watch vLLM during a step, and end the step when vLLM
    is gone.
    """

    def __init__(
        self, shape: ModelShape, device: torch.device, tensors: Mapping[str, SharedTensor], digest: str | None = None
    ) -> None:
        """`digest`: the digest that the mapped weights must have; None: any.

        Raises:
            WeightsError: a tensor is missing or has another shape.
        """
        self._expected = digest
        self.shape, self.device = shape, device
        self._tensors = dict(tensors)
        self._wanted = dict(_wanted(shape))
        for name, size in self._wanted.items():
            found = self._tensors.get(name)
            if found is None:
                raise WeightsError(f"vLLM exports no {name}: it serves another model than spec.model names")
            # vLLM pads the vocabulary.
            padded = name in (_EMBEDDING, HEAD)
            if found.shape[1:] != size[1:] or (found.shape[0] < size[0] if padded else found.shape[0] != size[0]):
                raise WeightsError(
                    f"vLLM's {name} is {list(found.shape)} and the model has {list(size)}: it serves another model,"
                    " or a part of one (tensor parallelism)"
                )
        self.dtype = self._tensors[_NORM].dtype
        self._mapped = ExitStack()
        self._views: dict[str, Tensor] = {}

    @property
    def resident_bytes(self) -> int:
        """0: the weights are on the device already."""
        return 0

    def acquire(self) -> None:
        """Map the weights. Raises MappingError, or WeightsError if their digest is not the expected one."""
        if self._views:
            return
        opened: dict[bytes, MappedAllocation] = {}
        try:
            for name, size in self._wanted.items():
                tensor = self._tensors[name]
                if tensor.handle not in opened:
                    opened[tensor.handle] = MappedAllocation(tensor.handle, self.device)
                    self._mapped.callback(opened[tensor.handle].close)
                view = opened[tensor.handle].tensor(tensor.offset, tensor.shape, tensor.dtype)[: size[0]]
                self._views[name] = ReadOnlyTensor.of(view)
            if self._expected is not None and self._expected != self.digest:
                raise WeightsError(
                    "vLLM serves other weights than those in the model's files, or in another dtype: the"
                    " hand-over Share needs a server that serves the files of spec.model unchanged"
                )
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Unmap them."""
        self._views = {}
        self._mapped.close()

    def close(self) -> None:
        self.release()

    def layer(self, index: int) -> LayerWeights:
        fields = layer_shapes(self.shape)
        return LayerWeights(**{field: self._views[_layer_name(index, field)] for field in fields})

    def embed(self, ids: Tensor) -> Tensor:
        return self._views[_EMBEDDING].index_select(0, ids)

    @property
    def final_norm(self) -> Tensor:
        return self._views[_NORM]

    @property
    def head(self) -> Tensor:
        return self._views[_EMBEDDING if self.shape.tied else HEAD]

    @property
    def digest(self) -> str:
        """Equals `HostWeights.digest` of the model's files if vLLM serves them as stored. Readable between `acquire`
        and `release` only."""
        stored: list[StoredTensor] = []
        sampled: list[Tensor] = []
        # Only reads, so plain tensors will do: the write checks of read-only ones would double the time.
        with torch._C.DisableTorchFunctionSubclass():
            for name, piece in self._pieces():
                flat = piece.contiguous().view(-1).view(torch.uint8)
                length = min(_SAMPLE_BYTES, len(flat))
                last = max(0, len(flat) - _SAMPLE_BYTES)
                sampled.append(torch.cat([flat[place : place + length] for place in (0, last // 2, last)]))
                size = tuple(piece.shape)
                stored.append(StoredTensor(Path(), name, _STORED_NAMES[piece.dtype], size, 0, len(flat)))
            # One transfer for all, because each transfer waits for its turn on a busy device.
            samples = torch.split(torch.cat(sampled).cpu(), [len(each) for each in sampled])
        return fingerprint({one.name: (one, bytes(each.tolist())) for one, each in zip(stored, samples, strict=True)})

    def _pieces(self) -> Iterator[tuple[str, Tensor]]:
        """The model's tensors, by their names in its files."""
        shape = self.shape
        widths = [shape.query_width, shape.key_width, shape.key_width]
        parts = {
            "self_attn.qkv_proj": list(zip(("q_proj", "k_proj", "v_proj"), widths, strict=True)),
            "mlp.gate_up_proj": [("gate_proj", shape.intermediate), ("up_proj", shape.intermediate)],
        }
        for name, view in self._views.items():
            for fused, pieces in parts.items():
                if f".{fused}." in name:
                    cut = torch.split(view, [width for _, width in pieces])
                    for (own, _), piece in zip(pieces, cut, strict=True):
                        yield name.replace(fused.rpartition(".")[2], own), piece
                    break
            else:
                yield name, view


def vllm_names(source: WeightSource) -> dict[str, Tensor]:
    """The parameters of a source, by their names in vLLM."""
    everything = torch.arange(source.shape.vocabulary, device=source.device)
    named = {_EMBEDDING: source.embed(everything), _NORM: source.final_norm, HEAD: source.head}
    for index in range(source.shape.layers):
        weights = source.layer(index)
        named |= {_layer_name(index, field): getattr(weights, field) for field in layer_shapes(source.shape)}
    return named


def _layer_name(index: int, field: str) -> str:
    return f"model.layers.{index}.{_LAYER_NAMES[field]}"


def _wanted(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """All parameters that the forward needs, by their names in vLLM, with their shapes."""
    for index in range(shape.layers):
        for field, size in layer_shapes(shape).items():
            yield _layer_name(index, field), size
    yield _EMBEDDING, (shape.vocabulary, shape.hidden)
    yield _NORM, (shape.hidden,)
    if not shape.tied:
        yield HEAD, (shape.vocabulary, shape.hidden)
