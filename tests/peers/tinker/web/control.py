"""Orders over HTTP, for a peer in a pod: what to make go wrong, and what was called."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field, JsonValue, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinker.types import RequestErrorCategory

from tests.peers.tinker.calls import Operation
from tests.peers.tinker.failures import Answer, Cut, Effect, Fails, NeverComes, Slow, When

if TYPE_CHECKING:
    from tests.peers.tinker.server import TinkerPeer


class AnswerOrder(BaseModel):
    kind: Literal["answer"]
    status: int

    def effect(self) -> Effect:
        return Answer(self.status)


class CutOrder(BaseModel):
    kind: Literal["cut"]
    seconds: float
    """Only so long: nobody can reach a peer that is gone to call it back."""

    def effect(self) -> Effect:
        return Cut(self.seconds)


class NeverOrder(BaseModel):
    kind: Literal["never"]

    def effect(self) -> Effect:
        return NeverComes()


class FailsOrder(BaseModel):
    kind: Literal["fails"]
    category: RequestErrorCategory = RequestErrorCategory.Server

    def effect(self) -> Effect:
        return Fails(self.category)


class SlowOrder(BaseModel):
    kind: Literal["slow"]
    seconds: float

    def effect(self) -> Effect:
        return Slow(self.seconds)


class FailureOrder(BaseModel):
    """The arguments of TinkerPeer.fail."""

    at: list[Operation]
    effect: Annotated[AnswerOrder | CutOrder | NeverOrder | FailsOrder | SlowOrder, Field(discriminator="kind")]
    when: Literal["received", "accepted", "done"] = "received"
    first: int = 1
    times: int | None = None
    of: Operation | None = None


class SettingsOrder(BaseModel):
    """What to change of the service; absent fields stay."""

    restores_optimizer: bool | None = None
    retire: str | None = None
    """A model to list no more."""
    expire: str | None = None
    """A checkpoint's path."""


def control_routes(peer: "TinkerPeer") -> list[Route]:
    """POST and DELETE /peer/failures, POST /peer/settings, GET /peer/calls."""

    async def failures(request: Request) -> Response:
        if request.method == "DELETE":
            peer.clear_failures()
            return Response(status_code=204)
        try:
            order = FailureOrder.model_validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"detail": str(error)}, status_code=422)
        when = When[order.when.upper()]
        peer.fail(order.at, order.effect.effect(), when=when, first=order.first, times=order.times, of=order.of)
        return Response(status_code=204)

    async def settings(request: Request) -> Response:
        try:
            order = SettingsOrder.model_validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"detail": str(error)}, status_code=422)
        if order.restores_optimizer is not None:
            peer.service.restores_optimizer = order.restores_optimizer
        if order.retire is not None:
            peer.retire(order.retire)
        if order.expire is not None:
            peer.expire(order.expire)
        return Response(status_code=204)

    async def calls(request: Request) -> Response:
        told: list[dict[str, JsonValue]] = [asdict(call) for call in list(peer.calls)]
        return JSONResponse(told)

    return [
        Route("/peer/failures", failures, methods=["POST", "DELETE"]),
        Route("/peer/settings", settings, methods=["POST"]),
        Route("/peer/calls", calls, methods=["GET"]),
    ]
