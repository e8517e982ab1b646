"""The wire's tensors and messages, by the SDK's own protobuf module."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import zstandard
from tinker.proto import tinker_public_pb2 as pb
from tinker.proto.response_conv import _tensor_data_from_proto
from tinker.types._pydantic_types.tensor_data import TensorData as JsonTensor

MASKED_LOGPROB = -99999.0


@dataclass(frozen=True)
class Example:
    """One datum: input tokens, and the loss's inputs as dense tensors."""

    tokens: list[int]
    inputs: dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainRequest:
    run: str
    seq: int
    loss: str
    forward_only: bool
    config: dict[str, float]
    examples: tuple[Example, ...]


def read_train_request(body: bytes, encoding: str | None) -> TrainRequest:
    """The request of forward and forward_backward; ValueError if it says what this server does not know."""
    if encoding == "zstd":
        body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    message = pb.ForwardBackwardRequest()
    message.ParseFromString(body)
    config = dict(message.loss_fn_config) | {key: value.number for key, value in message.loss_fn_config_v2.items()}
    return TrainRequest(
        run=message.model_id,
        seq=message.seq_id,
        loss=message.loss_fn,
        forward_only=message.forward_only,
        config=config,
        examples=tuple(_example(datum) for datum in message.data),
    )


def _example(datum: pb.Datum) -> Example:
    tokens: list[int] = []
    for chunk in datum.model_input:
        if chunk.WhichOneof("chunk") != "encoded_text":
            raise ValueError("model_input: this model reads text only")
        tokens += np.frombuffer(chunk.encoded_text.tokens, dtype=np.int32).tolist()
    inputs = {name: _tensor_data_from_proto(tensor).to_torch() for name, tensor in datum.loss_fn_inputs.items()}
    return Example(tokens, {name: value.reshape(_shape(datum, name)) for name, value in inputs.items()})


def _shape(datum: pb.Datum, name: str) -> tuple[int, ...]:
    shape = tuple(datum.loss_fn_inputs[name].shape)
    return shape or (-1,)


def training_output(logprobs: Sequence[torch.Tensor], metrics: dict[str, float]) -> bytes:
    """One record for each datum, for targets may have different widths."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=metrics)
    for tensor in logprobs:
        array = tensor.detach().numpy().astype(np.float32)
        record = message.loss_fn_outputs.add()
        record.num_datums = 1
        field = record.fields["logprobs"]
        field.data = array.tobytes()
        field.offsets = np.array([0, array.nbytes], dtype=np.int64).tobytes()
        field.dtype = pb.DTYPE_FLOAT32
        field.trailing_shape.extend(array.shape[1:])
    return bytes(message.SerializeToString())


@dataclass(frozen=True)
class TopK:
    """Token ids and log-probabilities, [positions, k]."""

    ids: torch.Tensor
    logprobs: torch.Tensor


@dataclass(frozen=True)
class Sampled:
    tokens: list[int]
    logprobs: list[float]
    stopped: bool
    topk: TopK | None


def sample_output(
    sequences: Sequence[Sampled],
    prompt_logprobs: torch.Tensor | None,
    prompt_topk: TopK | None,
    targets: tuple[JsonTensor, torch.Tensor] | None,
) -> bytes:
    message = pb.SampleResponse()
    for sequence in sequences:
        out = message.sequences.add()
        out.tokens = np.array(sequence.tokens, dtype=np.int32).tobytes()
        out.logprobs = np.array(sequence.logprobs, dtype=np.float32).tobytes()
        out.stop_reason = pb.STOP_REASON_STOP if sequence.stopped else pb.STOP_REASON_LENGTH
        if sequence.topk is not None:
            _write_topk(out.topk_sampled_logprobs, sequence.topk)
    if prompt_logprobs is not None:
        message.prompt_logprobs = prompt_logprobs.numpy().astype(np.float32).tobytes()
    if prompt_topk is not None:
        _write_topk(message.topk_prompt_logprobs, prompt_topk)
    if targets is not None:
        _write_like(message.target_prompt_logprobs, *targets)
    return bytes(message.SerializeToString())


def _write_topk(message: pb.TopkLogprobs, topk: TopK) -> None:
    message.length, message.k = topk.ids.shape
    message.token_ids = topk.ids.numpy().astype(np.int32).tobytes()
    message.logprobs = topk.logprobs.numpy().astype(np.float32).tobytes()


def _write_like(message: pb.Tensor, asked: JsonTensor, values: torch.Tensor) -> None:
    """Values in the layout that was asked for: the same cells when sparse."""
    message.dtype = pb.DTYPE_FLOAT32
    message.shape.extend(values.shape)
    if asked.sparse_crow_indices is None or asked.sparse_col_indices is None:
        message.dense = values.numpy().astype(np.float32).tobytes()
        return
    crow = np.array(asked.sparse_crow_indices, dtype=np.int64)
    columns = np.array(asked.sparse_col_indices, dtype=np.int64)
    rows = np.repeat(np.arange(len(crow) - 1), np.diff(crow))
    message.sparse_csr.values = values.numpy()[rows, columns].astype(np.float32).tobytes()
    message.sparse_csr.crow_indices = crow.tobytes()
    message.sparse_csr.col_indices = columns.tobytes()
