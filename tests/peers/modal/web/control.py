"""Orders over HTTP, for a peer in a pod: what to make go wrong, what was called, which containers there are."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

from aiohttp import web
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from pydantic import BaseModel, Field, ValidationError

from tests.peers.modal.failures import Cut, Effect, EndCall, Fate, KillContainer, Refuse, Slow, When

if TYPE_CHECKING:
    from tests.peers.modal.server import ModalPeer

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RefuseOrder(BaseModel):
    kind: Literal["refuse"]
    status: str
    """The name of a gRPC status."""
    message: str = "ordered failure"
    retry_after_s: float | None = None

    def effect(self) -> Effect:
        return Refuse(Status[self.status], self.message, self.retry_after_s)


class CutOrder(BaseModel):
    kind: Literal["cut"]
    seconds: float
    """Only so long: nobody can reach a peer that is gone to call it back."""

    def effect(self) -> Effect:
        return Cut(self.seconds)


class SlowOrder(BaseModel):
    kind: Literal["slow"]
    seconds: float

    def effect(self) -> Effect:
        return Slow(self.seconds)


class KillOrder(BaseModel):
    kind: Literal["kill"]

    def effect(self) -> Effect:
        return KillContainer()


class EndOrder(BaseModel):
    kind: Literal["end"]
    fate: Literal["lost", "timed_out", "expired", "unknown"]

    def effect(self) -> Effect:
        return EndCall(Fate[self.fate.upper()])


class FailureOrder(BaseModel):
    """The arguments of ModalPeer.fail."""

    at: list[str]
    effect: Annotated[RefuseOrder | CutOrder | SlowOrder | KillOrder | EndOrder, Field(discriminator="kind")]
    when: Literal["received", "done"] = "received"
    first: int = 1
    times: int | None = None
    of: str | None = None


class SecretOrder(BaseModel):
    name: str
    values: dict[str, str]


class TokenOrder(BaseModel):
    token_id: str
    token_secret: str


class ServerOrder(BaseModel):
    app: str
    server: str
    containers: int


def control_routes(peer: "ModalPeer") -> list[web.RouteDef]:
    """All below /peer: failures, secrets, token, servers, calls, rpcs, containers, apps."""

    async def add_failure(request: web.Request) -> web.Response:
        order = FailureOrder.model_validate_json(await request.read())
        when = When[order.when.upper()]
        peer.fail(order.at, order.effect.effect(), when=when, first=order.first, times=order.times, of=order.of)
        return web.Response(status=204)

    async def clear_failures(request: web.Request) -> web.Response:
        peer.clear_failures()
        return web.Response(status=204)

    async def put_secret(request: web.Request) -> web.Response:
        order = SecretOrder.model_validate_json(await request.read())
        peer.secret(order.name, order.values)
        return web.Response(status=204)

    async def put_token(request: web.Request) -> web.Response:
        order = TokenOrder.model_validate_json(await request.read())
        peer.accept(order.token_id, order.token_secret)
        return web.Response(status=204)

    async def start_server(request: web.Request) -> web.Response:
        order = ServerOrder.model_validate_json(await request.read())
        peer.start_containers(order.app, order.server, order.containers)
        return web.json_response({"url": peer.server_url(order.app, order.server)})

    async def calls(request: web.Request) -> web.Response:
        told = [
            {
                "id": call.id,
                "app": call.app,
                "function": call.function.tag,
                "method": call.method,
                "state": call.state,
                "runs": [run.container for run in call.runs],
                "cancelled": call.cancelled,
                "succeeded": call.succeeded,
            }
            for call in peer.calls
        ]
        return web.json_response(told)

    async def rpcs(request: web.Request) -> web.Response:
        told = [{**asdict(rpc), "status": rpc.status.name if rpc.status else None} for rpc in peer.rpcs]
        return web.json_response(told)

    async def containers(request: web.Request) -> web.Response:
        told = [
            {
                "id": container.id,
                "task_id": container.task_id,
                "app": container.function.app.name,
                "function": container.function.tag,
                "ready": container.ready,
                "alive": container.alive,
                "log": container.log,
            }
            for container in peer.containers(alive=False)
        ]
        return web.json_response(told)

    async def kill_container(request: web.Request) -> web.Response:
        peer.kill_container(request.match_info["id"])
        return web.Response(status=204)

    async def app(request: web.Request) -> web.Response:
        return web.json_response(asdict(peer.app(request.match_info["name"])))

    routes = {
        ("POST", "/peer/failures"): add_failure,
        ("DELETE", "/peer/failures"): clear_failures,
        ("POST", "/peer/secrets"): put_secret,
        ("POST", "/peer/token"): put_token,
        ("POST", "/peer/servers"): start_server,
        ("GET", "/peer/calls"): calls,
        ("GET", "/peer/rpcs"): rpcs,
        ("GET", "/peer/containers"): containers,
        ("DELETE", "/peer/containers/{id}"): kill_container,
        ("GET", "/peer/apps/{name}"): app,
    }
    return [web.route(method, path, _told(answer)) for (method, path), answer in routes.items()]


def _told(answer: Answer) -> Answer:
    """Tells what is wrong with an order as 422, and what is not there as 404."""

    async def checked(request: web.Request) -> web.StreamResponse:
        try:
            return await answer(request)
        except (LookupError, GRPCError) as error:
            return web.Response(status=404, text=str(error))
        except (ValidationError, ValueError) as error:
            return web.Response(status=422, text=str(error))

    return checked
