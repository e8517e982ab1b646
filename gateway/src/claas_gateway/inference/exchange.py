"""One request's way to a pod and back: pods are tried, the answer is passed on, and the rollout stored."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import msgspec

from claas_gateway.directory.models import Adapter, Server, Target
from claas_gateway.errors import NotNow
from claas_gateway.identifiers import Prefix, new_identifier
from claas_gateway.inference.answers import Answers, of_document, of_events
from claas_gateway.inference.events import EventCutter
from claas_gateway.inference.outlet import Headers, Outlet
from claas_gateway.inference.record import Record, read_record
from claas_gateway.inference.request import Asked
from claas_gateway.inference.rollouts import DISCONNECTED, SERVER_LOST, rollouts_of
from claas_gateway.services import Services
from claas_gateway.upstream.credentials import ServerCredentials
from claas_gateway.upstream.servers import NoAnswer

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.25
"""How long to wait before the pods are looked at again."""
STORE_SECONDS = 10.0
"""How long the end of an answer waits for the store."""
_PASSED_ON = ("traceparent", "tracestate", "x-request-id")
_PASSED_BACK = ("content-type", "retry-after", "x-claas-version", "x-request-id")


class Exchange:
    """One request and its answer."""

    def __init__(self, services: Services, asked: Asked, target: Target, path: str, outlet: Outlet) -> None:
        self._services = services
        self._upstream = services.upstream
        self._asked = asked
        self._target = target
        self._path = path
        self._outlet = outlet
        self._rollout_id = new_identifier(Prefix.ROLLOUT)
        self._served = target.served_name if isinstance(target, Adapter) else target.name
        self._pieces: list[bytes] = []
        self._recorded = False
        self.server: Server | None = None
        """The pod that is asked."""

    async def run(self, headers: dict[str, str]) -> None:
        """Get an answer and pass it on. Raises NotNow, and GatewayError for what can't be answered."""
        tried: set[str] = set()
        credentials = await self._upstream.credentials(self._target.servers)
        while True:
            self.server = self._upstream.choose(self._target.servers, tried)
            if self.server is None:
                tried.clear()
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            try:
                await self._try(self.server, credentials, headers)
            except (NoAnswer, aiohttp.ClientError) as error:
                if self._outlet.begun:
                    await self._lost()
                    return
                log.info("%s did not answer: %s", self.server.pod, type(error).__name__)
                tried.add(self.server.uid)
                self._pieces.clear()
            else:
                return

    async def _try(self, server: Server, credentials: ServerCredentials, headers: dict[str, str]) -> None:
        sent = {"Content-Type": "application/json", **headers}
        inside = await self._upstream.records(server, credentials)
        if inside:
            sent["X-Claas-Record"] = self._wanted
        body = self._asked.body if self._asked.model == self._served else self._asked.changed(model=self._served)
        async with self._upstream.ask(
            server, credentials, "POST", self._path, body=body, headers=sent, control=inside
        ) as response:
            if response.status >= 400:
                await self._outlet.whole(response.status, self._headers(response), await response.read())
            elif response.content_type == "text/event-stream":
                await self._stream(response)
            else:
                await self._whole(response)

    @property
    def _wanted(self) -> str:
        target = self._target
        wants = isinstance(target, Adapter) and target.found.spec.rollouts.logprobs
        return "ids, logprobs" if wants else "ids"

    async def _stream(self, response: aiohttp.ClientResponse) -> None:
        cutter = EventCutter()
        old, new = self._names
        outlet, pieces, read = self._outlet, self._pieces, response.content.readany
        while data := await read():
            events = cutter.feed(data)
            if events:
                pieces.append(events)
                if not outlet.status:
                    await outlet.start(response.status, self._headers(response, rollout=True))
                await outlet.write(events.replace(old, new) if old else events)
        if not cutter.ended:
            raise aiohttp.ClientPayloadError("the stream ended without an end")
        if not outlet.status:
            await outlet.start(response.status, self._headers(response, rollout=True))
        await self._store(of_events(pieces), read_record(cutter.record, self._asked.answers))
        await outlet.finish(cutter.last)

    async def _whole(self, response: aiohttp.ClientResponse) -> None:
        body = await response.read()
        kept, _, length = response.headers.get("x-claas-record", "").partition("=")
        tail = int(length) if kept == "tail" and length.isdecimal() else 0
        line = body[len(body) - tail :] if tail else None
        body = body[: len(body) - tail]
        self._pieces.append(body)
        stored = await self._store(of_document(body), read_record(line, self._asked.answers))
        old, new = self._names
        body = body.replace(old, new, 1) if old else body
        await self._outlet.whole(response.status, self._headers(response, rollout=stored), body)

    async def _lost(self) -> None:
        """The server ended in the midst of its answer."""
        await self._store(of_events(self._pieces), None, broken=SERVER_LOST)
        await self._outlet.fail(NotNow("The model's server ended before its answer did", retry_after_seconds=1))

    async def abandon(self) -> None:
        """The client has gone: keep what it was sent."""
        if self._outlet.begun and not self._recorded:
            await self._store(of_events(self._pieces), None, broken=DISCONNECTED)

    @property
    def _names(self) -> tuple[bytes, bytes]:
        """What to replace in the answer, and by what; empty: nothing."""
        asked = self._asked.model
        if asked is None or asked == self._served:
            return b"", b""
        return _model(self._served), _model(asked)

    def _headers(self, response: aiohttp.ClientResponse, *, rollout: bool = False) -> Headers:
        headers = [
            (name.encode(), value.encode("latin-1"))
            for name in _PASSED_BACK
            if (value := response.headers.get(name)) is not None
        ]
        if rollout:
            headers.append((b"x-claas-rollout", self._rollout_id.encode()))
        return headers

    async def _store(self, answers: Answers, record: Record | None, *, broken: str | None = None) -> bool:
        """Store the rollouts; False if that failed, which must not keep the client from its answer."""
        self._recorded = True
        services = self._services
        made = rollouts_of(
            self._asked, self._target, self._rollout_id, answers, record, services.clock(), broken=broken
        )
        writing = asyncio.ensure_future(services.store.rollouts.add(made))
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await asyncio.shield(writing)
        except Exception as error:  # noqa: BLE001  (whatever goes wrong in the store)
            log.error("a rollout of %s could not be stored: %s", self._served, type(error).__name__)
            return False
        for rollout in made:
            kind = "incomplete" if rollout.incomplete is not None else rollout.evidence.value
            services.metrics.rollouts.labels(rollout.namespace, rollout.adapter or "", kind).inc()
        return True


def passed_on(headers: Headers) -> dict[str, str]:
    """The client's headers that go on to the server; its key does not."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in headers
        if name.decode("latin-1") in _PASSED_ON
    }


def _model(name: str) -> bytes:
    return b'"model":' + msgspec.json.encode(name)
