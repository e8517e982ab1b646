"""A request that was read, and what handlers of requests have in common."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from pydantic import BaseModel as Message
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.peers.tinker.calls import Call, Operation
from tests.peers.tinker.checkpoints import RefusedError
from tests.peers.tinker.model.wire import TrainRequest, read_train_request
from tests.peers.tinker.service import Order
from tests.peers.tinker.state import State


@dataclass(frozen=True)
class Incoming:
    """A request that was read: its call, its body, and what was ordered for it."""

    call: Call
    request: Request
    body: bytes
    train: TrainRequest | None
    order: Order


Handler = Callable[[Incoming], Awaitable[Response]]
Table = dict[Operation, tuple[str, str, Handler]]
"""Method, path and handler by operation."""


@dataclass(frozen=True)
class Settings:
    """How the wire behaves."""

    compress: bool
    """Whether clients are told to send forward_backward compressed."""
    datums_per_request: int
    """Clients split longer lists of datums."""
    long_poll_s: float
    url_lifetime: timedelta


def as_json(message: Message) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")


def refusal(error: RefusedError | ValidationError | ValueError) -> Response:
    """The answer to a request that is wrong."""
    status = error.status if isinstance(error, RefusedError) else 422 if isinstance(error, ValidationError) else 400
    return JSONResponse({"detail": str(error)}, status_code=status)


def read_call(operation: Operation, request: Request, body: bytes, state: State) -> tuple[Call, TrainRequest | None]:
    """Which run or sampler a request is about, its sequence number, and its body if it is one of training."""
    if operation is Operation.FORWARD_BACKWARD:
        train = read_train_request(body, request.headers.get("content-encoding"))
        operation = Operation.FORWARD if train.forward_only else operation
        return Call(operation, train.run, train.seq), train
    named = request.path_params.get("run") or request.path_params.get("sampler")
    fields = json.loads(body) if body else {}
    if operation is Operation.RETRIEVE:
        job = state.jobs.get(fields.get("request_id", ""))
        if job is None:
            return Call(operation, request_id=fields.get("request_id")), None
        of = job.call
        return Call(operation, of.run, of.seq, of.checkpoint, of.operation, job.request_id), None
    run = named or fields.get("model_id") or fields.get("sampling_session_id")
    if run is None and fields.get("model_seq_id") is not None:
        run = f"{fields.get('session_id')}:train:{fields['model_seq_id']}"
    checkpoint = fields.get("path") or fields.get("model_path") or fields.get("tinker_path")
    if "name" in request.path_params:
        checkpoint = checkpoint_path(request)
    return Call(operation, run, fields.get("seq_id"), checkpoint), None


def checkpoint_path(request: Request) -> str:
    """The checkpoint that the address names, as a tinker path."""
    parameters = request.path_params
    return f"tinker://{parameters['run']}/{parameters['folder']}/{parameters['name']}"
