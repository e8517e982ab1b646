"""Calls of a deployed class: one document in, one document out, as cbor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import cbor2

from claas_bounded.waits import Deadline, in_thread
from claas_modal_client.connection import ModalConnection
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.faults import Missing, call_fault, fault
from claas_modal_client.sdk import CallState, Output, download, modal, poll

Plain: TypeAlias = "bool | int | float | str | bytes | list[Plain] | dict[str, Plain] | None"
"""What travels."""
Document: TypeAlias = dict[str, Plain]

_SLICE_SECONDS = 10.0
_GRACE_SECONDS = 75.0
"""The SDK tries to connect for 60 s."""
_LAST_SECONDS = 5.0
"""Time for the answer to a question that was asked at the deadline."""
_TRANSFER_SECONDS = 60.0
"""Least time for a result that is there but has to be fetched from object storage."""
_OUTAGE_SECONDS = 180.0
_PAUSE_SECONDS = 2.0
_PASSING = frozenset({ModalFault.UNREACHABLE, ModalFault.RATE_LIMITED})


@dataclass(frozen=True)
class DeployedClass:
    """A class of a deployed app."""

    app: str
    name: str

    def __str__(self) -> str:
        return f"the class {self.name} of the app {self.app}"


async def preflight(connection: ModalConnection, deployed: DeployedClass, deadline: Deadline) -> None:
    """Check that the platform knows the token and the class. Starts no container. Raises ModalServiceError."""
    await _find(connection, deployed, deadline)


async def spawn(
    connection: ModalConnection,
    deployed: DeployedClass,
    method: str,
    request: Mapping[str, Plain],
    deadline: Deadline,
) -> str:
    """Begin a call, and return its id. When this raises, the call may have begun all the same. Raises
    ModalServiceError."""
    found = await _find(connection, deployed, deadline)
    call = await connection.call(
        f"to run {method} of {deployed}", lambda: getattr(found(), method).spawn.aio(dict(request)), deadline
    )
    return str(call.object_id)


async def take(
    connection: ModalConnection,
    call: str,
    deadline: Deadline,
    progress: Callable[[float], None] | None = None,
) -> Document:
    """The result of a call of this or another process. The call goes on when this raises TIMED_OUT. An outage of
    three minutes is outlasted. `progress` is told every few seconds how many seconds have passed. Raises
    ModalServiceError."""
    asked = f"for the result of {call}"
    began, healthy = deadline.clock(), deadline.clock()
    # The SDK waits as long as it may for a result that is gone, so the first question does not wait.
    slice_seconds = 0.0
    while True:
        try:
            output = await _output(connection, call, asked, min(slice_seconds, deadline.left()), deadline)
            healthy, slice_seconds = deadline.clock(), _SLICE_SECONDS
        except ModalServiceError as error:
            over = deadline.left() <= 0 or deadline.clock() - healthy > _OUTAGE_SECONDS
            if error.kind not in _PASSING or over:
                raise
            await asyncio.sleep(min(_PAUSE_SECONDS, deadline.left()))
            continue
        if output.state is not CallState.UNFINISHED:
            return await _document(connection, output, asked, deadline)
        seconds = deadline.clock() - began
        if deadline.left() <= 0:
            raise fault(ModalFault.TIMED_OUT, asked, f"had none after {seconds:.0f} s")
        if progress is not None:
            progress(seconds)


async def cancel(connection: ModalConnection, call: str, deadline: Deadline) -> None:
    """Cancel a call and end its container, which surely stops the GPU. Without effect on a call that has ended.
    Raises ModalServiceError."""
    client = await connection.client(deadline)
    handle = modal.FunctionCall.from_id(call, client=client)
    await connection.call(
        f"to cancel {call}", lambda: handle.cancel.aio(terminate_containers=True), deadline, Missing.CALL
    )


async def _find(connection: ModalConnection, deployed: DeployedClass, deadline: Deadline) -> modal.Cls:
    client = await connection.client(deadline)
    found = modal.Cls.from_name(deployed.app, deployed.name, environment_name=connection.environment, client=client)
    await connection.call(f"for {deployed}", lambda: found.hydrate.aio(), deadline)
    return found


async def _output(connection: ModalConnection, call: str, asked: str, seconds: float, deadline: Deadline) -> Output:
    client = await connection.client(deadline)
    limit = Deadline.after(min(seconds + _GRACE_SECONDS, deadline.left() + _LAST_SECONDS))
    return await connection.call(asked, lambda: poll(client, call, seconds), limit, Missing.CALL)


async def _document(connection: ModalConnection, output: Output, asked: str, deadline: Deadline) -> Document:
    if output.state is not CallState.SUCCESS:
        raise call_fault(output, asked)
    if not output.is_cbor:
        raise fault(ModalFault.CALL_FAILED, asked, "gave a result that is not cbor, which is not read")
    data = output.data
    if output.blob is not None:
        blob, client = output.blob, await connection.client(deadline)
        limit = Deadline.after(max(deadline.left(), _TRANSFER_SECONDS))
        data = await connection.call(asked, lambda: download(client, blob), limit, Missing.CALL)
    try:
        document = await in_thread(lambda: cbor2.loads(data))
    except Exception:  # noqa: BLE001 - whatever the decoder raises, the text may quote what was sent
        document = None
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise fault(ModalFault.CALL_FAILED, asked, "gave a result that this release can't read")
    return document
