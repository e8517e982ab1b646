"""The peer as tests use it: `with TinkerPeer(model_folder) as peer: tinker.ServiceClient(base_url=peer.url, ...)`."""

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinker.types.get_server_capabilities_response import SupportedModel

from tests.peers.tinker.calls import OPEN, Call, Operation
from tests.peers.tinker.checkpoints import Checkpoints, RefusedError
from tests.peers.tinker.failures import (
    Answer,
    Cut,
    Do,
    Effect,
    Fails,
    NeverComes,
    Rule,
    Rules,
    Slow,
    When,
)
from tests.peers.tinker.jobs import Cycle
from tests.peers.tinker.model.lora import BaseModel
from tests.peers.tinker.model.sampling import SamplingLimits
from tests.peers.tinker.model.wire import TrainRequest
from tests.peers.tinker.service import Order, Service
from tests.peers.tinker.state import State
from tests.peers.tinker.web.control import control_routes
from tests.peers.tinker.web.incoming import Handler, Incoming, Settings, read_call, refusal
from tests.peers.tinker.web.listener import Listener
from tests.peers.tinker.web.rest import RestRoutes
from tests.peers.tinker.web.routes import Routes

API_KEY = "tml-peer"
MODEL_NAME = "peer/tiny-qwen3"


class TinkerPeer:
    """A Tinker service with one base model. Its state outlives `cut` and `come_back`, not the object."""

    def __init__(
        self,
        model_folder: Path,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        model_name: str = MODEL_NAME,
        api_key: str | None = None,
        cycle_s: float = 0.0,
        long_poll_s: float = 20.0,
        session_timeout_s: float | None = None,
        gone_status: int = 404,
        limits: SamplingLimits | None = None,
        max_rank: int = 128,
        url_lifetime_s: float = 900.0,
        compress: bool = True,
        datums_per_request: int = 1024,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`api_key` None accepts every key; `session_timeout_s` None lets sessions live without heartbeats."""
        self.model_name = model_name
        self.host = host
        self.calls: list[Call] = []
        self._api_key = api_key
        self._rules = Rules()
        self._lock = threading.Lock()
        self.model = BaseModel(model_folder)
        self.checkpoints = Checkpoints(now, gone_status)
        self.state = State(self.checkpoints, Cycle(cycle_s), session_timeout_s, self._after_work)
        self.service = Service(self.model, self.state, limits=limits or SamplingLimits(), max_rank=max_rank)
        self.offer(model_name)
        settings = Settings(compress, datums_per_request, long_poll_s, timedelta(seconds=url_lifetime_s))
        table = Routes(self.service, settings).table | RestRoutes(self.state, settings).table
        routes = [
            Route(f"/api/v1{path}", self._endpoint(operation, handler), methods=[method])
            for operation, (method, path, handler) in table.items()
        ]
        self._listener = Listener(Starlette(routes=routes + control_routes(self)), host, port)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self._listener.port}"

    def start(self) -> Self:
        self._listener.start()
        return self

    def stop(self) -> None:
        self._listener.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def fail(
        self,
        at: Operation | Collection[Operation],
        effect: Effect,
        *,
        when: When = When.RECEIVED,
        first: int = 1,
        times: int | None = None,
        of: Operation | None = None,
        run: str | None = None,
    ) -> Rule:
        """Order an effect for calls from the `first` matching one on, `times` of them, for ever without.

        `of` narrows RETRIEVE to results of one operation, `run` to one run or sampler.
        """
        operations = frozenset([at] if isinstance(at, Operation) else at)
        return self._rules.add(Rule(operations, effect, when, first, times, of, run))

    def do(
        self, at: Operation, function: Callable[[Call], None], *, when: When = When.RECEIVED, first: int = 1
    ) -> Rule:
        """Call a function of the test once, at the `first` call of an operation."""
        return self.fail(at, Do(function), when=when, first=first, times=1)

    def clear_failures(self) -> None:
        self._rules.clear()

    def accept(self, api_key: str) -> None:
        """Take this key alone from now on."""
        self._api_key = api_key

    def cut(self, seconds: float | None = None) -> None:
        """Be gone, as from the network, for so long or until `come_back`: what was accepted is done all the same."""
        self._listener.cut()
        if seconds is not None:
            back = threading.Timer(seconds, self.come_back)
            back.daemon = True
            back.start()

    def come_back(self) -> None:
        """Be reachable again at the same address, with all that was there."""
        self._listener.start()

    def offer(self, model_name: str, *, trainable: bool = True, sampleable: bool = True) -> None:
        """List a model (all names mean the one base model)."""
        self.service.models[model_name] = SupportedModel(
            model_name=model_name,
            max_context_length=self.model.context_length,
            trainable=trainable,
            sampleable=sampleable,
        )

    def retire(self, model_name: str | None = None) -> None:
        """List a model no more."""
        self.service.models.pop(model_name or self.model_name, None)

    def expire(self, path: str, *, status: int = 404) -> None:
        """End a checkpoint's time now; from now on all that are gone answer `status`."""
        self.checkpoints.gone_status = status
        self.checkpoints.expire(path)

    def called(self, operation: Operation) -> list[Call]:
        """Calls of one operation, oldest first."""
        with self._lock:
            return [call for call in self.calls if call.operation is operation]

    def _endpoint(
        self, operation: Operation, handler: Handler
    ) -> Callable[[Request], Coroutine[None, None, Response]]:
        async def endpoint(request: Request) -> Response:
            body = await request.body()
            try:
                call, train = read_call(operation, request, body, self.state)
            except ValueError as error:
                return refusal(error)
            with self._lock:
                self.calls.append(call)
            response = await self._answer(handler, request, body, call, train)
            call.status = response.status_code
            return response

        return endpoint

    async def _answer(
        self, handler: Handler, request: Request, body: bytes, call: Call, train: TrainRequest | None
    ) -> Response:
        needs_key = self._api_key is not None and call.operation not in OPEN
        if needs_key and request.headers.get("x-api-key") != self._api_key:
            return JSONResponse({"detail": "the API key is not valid"}, status_code=401)
        effects = self._rules.effects(call, When.RECEIVED)
        await self._carry_out(effects, call)
        for effect in effects:
            if isinstance(effect, Answer):
                return JSONResponse({"detail": "ordered failure"}, effect.status, effect.headers)
        order = Order(
            never=any(isinstance(effect, NeverComes) for effect in effects),
            fails=next((effect for effect in effects if isinstance(effect, Fails)), None),
        )
        try:
            response = await handler(Incoming(call, request, body, train, order))
        except (RefusedError, ValidationError, ValueError) as error:
            return refusal(error)
        effects = self._rules.effects(call, When.ACCEPTED)
        await self._carry_out(effects, call)
        for effect in effects:
            if isinstance(effect, Answer):
                return JSONResponse({"detail": "ordered failure"}, effect.status, effect.headers)
        return response

    async def _carry_out(self, effects: list[Effect], call: Call) -> None:
        for effect in effects:
            if isinstance(effect, Slow):
                await asyncio.sleep(effect.seconds)
            elif isinstance(effect, Do):
                await asyncio.to_thread(effect.function, call)
            elif isinstance(effect, Cut):
                self.cut(effect.seconds)
                await asyncio.Event().wait()

    def _after_work(self, call: Call) -> None:
        for effect in self._rules.effects(call, When.DONE):
            if isinstance(effect, Slow):
                time.sleep(effect.seconds)
            elif isinstance(effect, Do):
                effect.function(call)
            elif isinstance(effect, Cut):
                self.cut(effect.seconds)
