"""The Modal SDK with the settings that we need, and all that we use of its private parts.

The SDK is pinned exactly, because what is private may change with any release. Its own `FunctionCall.get` unpickles
exceptions, and results that claim to be pickled; `poll` never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import modal as modal
from modal._functions import _Invocation
from modal._utils.async_utils import synchronize_api
from modal._utils.blob_utils import blob_download
from modal.client import _Client
from modal.config import config
from modal.types import FileEntryType as FileEntryType
from modal_proto import api_pb2


class CallState(Enum):
    """How far a call is."""

    UNFINISHED = "unfinished"
    EXPIRED = "expired"
    """It has ended, and its result is gone."""
    SUCCESS = "success"
    FAILURE = "failure"
    """The class raised an exception."""
    TERMINATED = "terminated"
    """It was cancelled."""
    TIMEOUT = "timeout"
    INIT_FAILURE = "init_failure"
    """The class could not start."""
    OUT_OF_MEMORY = "out_of_memory"
    INTERNAL_FAILURE = "internal_failure"
    """Modal, or the container, failed."""


_STATES = {
    api_pb2.GenericResult.GENERIC_STATUS_SUCCESS: CallState.SUCCESS,
    api_pb2.GenericResult.GENERIC_STATUS_FAILURE: CallState.FAILURE,
    api_pb2.GenericResult.GENERIC_STATUS_TERMINATED: CallState.TERMINATED,
    api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT: CallState.TIMEOUT,
    api_pb2.GenericResult.GENERIC_STATUS_INIT_FAILURE: CallState.INIT_FAILURE,
    api_pb2.GenericResult.GENERIC_STATUS_MEMORY_MANAGER_EVICTION: CallState.OUT_OF_MEMORY,
    api_pb2.GenericResult.GENERIC_STATUS_MEMORY_THRASHING_EVICTION: CallState.OUT_OF_MEMORY,
    api_pb2.GenericResult.GENERIC_STATUS_KERNEL_OOM_KILL: CallState.OUT_OF_MEMORY,
}


@dataclass(frozen=True)
class Output:
    """What a call has come to, as it arrived: nothing of it was decoded."""

    state: CallState
    told: str = ""
    """Text of the exception. May quote whatever the class was given."""
    is_cbor: bool = False
    data: bytes = b""
    blob: str | None = None
    """The data lie in object storage, under this name."""


async def _open_client(server_url: str | None, token_id: str, token_secret: str) -> _Client:
    client = _Client(server_url or config["server_url"], api_pb2.CLIENT_TYPE_CLIENT, (token_id, token_secret))
    await client._open()  # type: ignore[no-untyped-call]
    return client


async def _poll(client: _Client | None, call: str, seconds: float) -> Output:
    known = await _Client.from_env() if client is None else client
    response = await _Invocation(known._stub, call, known).pop_function_call_outputs(timeout=seconds)
    if not response.outputs:
        return Output(CallState.UNFINISHED if response.num_unfinished_inputs else CallState.EXPIRED)
    item = response.outputs[0]
    result = item.result
    return Output(
        _STATES.get(result.status, CallState.INTERNAL_FAILURE),
        result.exception,
        item.data_format == api_pb2.DATA_FORMAT_CBOR,
        result.data,
        result.data_blob_id or None,
    )


async def _download(client: _Client | None, blob: str) -> bytes:
    known = await _Client.from_env() if client is None else client
    data: bytes = await blob_download(blob, known._stub)
    return data


# The SDK runs in a thread with an event loop of its own; `aio` waits for it there.
_open_client_there = synchronize_api(_open_client)  # type: ignore[no-untyped-call]
_poll_there = synchronize_api(_poll)  # type: ignore[no-untyped-call]
_download_there = synchronize_api(_download)  # type: ignore[no-untyped-call]


async def open_client(server_url: str | None, token_id: str, token_secret: str) -> modal.Client:
    """A client for a token, connected."""
    client: modal.Client = await _open_client_there.aio(server_url, token_id, token_secret)
    return client


async def poll(client: modal.Client | None, call: str, seconds: float) -> Output:
    """The output of a call, waited for at most so many seconds."""
    output: Output = await _poll_there.aio(client, call, seconds)
    return output


async def download(client: modal.Client | None, blob: str) -> bytes:
    """Bytes from object storage."""
    data: bytes = await _download_there.aio(client, blob)
    return data
