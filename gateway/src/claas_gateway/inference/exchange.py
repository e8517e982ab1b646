"""One request and its answer: asked of a pod, passed on, and stored as rollouts before the client's last bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import aiohttp

from claas_gateway.directory.models import Adapter, Server, Target
from claas_gateway.errors import NotNow
from claas_gateway.identifiers import Prefix, new_identifier
from claas_gateway.inference.editing.editor import Editor
from claas_gateway.inference.editing.events import EventCutter
from claas_gateway.inference.outlet import Headers, Outlet
from claas_gateway.inference.recording.answers import Answers, data_of, of_documents
from claas_gateway.inference.recording.record import Record, read_record, version_number
from claas_gateway.inference.recording.rollouts import DISCONNECTED, SERVER_LOST, rollouts_of
from claas_gateway.inference.recording.wire import Injection, inject, wire_record
from claas_gateway.inference.request import Asked
from claas_gateway.services import Services
from claas_gateway.upstream.credentials import ServerCredentials
from claas_gateway.upstream.pods import PodTries

log = logging.getLogger(__name__)

STORE_SECONDS = 10.0
"""How long the end of an answer waits for the store."""
EVENT_STREAM = b"text/event-stream; charset=utf-8"
UNBUFFERED = (b"x-accel-buffering", b"no")
"""Asks nginx to pass a stream on as it comes."""
_RECORD_HEADER = "X-Claas-Record"
_PASSED_BACK = ("content-type", "retry-after", "x-claas-version", "x-request-id")


class Exchange:
    """One request and its answer."""

    def __init__(
        self, services: Services, asked: Asked, target: Target, path: str, outlet: Outlet, hold_seconds: float
    ) -> None:
        self._services = services
        self._asked = asked
        self._target = target
        self._path = path
        self._outlet = outlet
        self._rollout_id = new_identifier(Prefix.ROLLOUT)
        self._adapter = target if isinstance(target, Adapter) else None
        self._served = target.served_name if isinstance(target, Adapter) else target.name
        self._pieces: list[bytes] = []
        self._stored = False
        self.tries = PodTries(services.upstream, target.servers, hold_seconds)

    async def run(self, headers: dict[str, str]) -> None:
        """Get an answer and pass it on; `headers` go with the request."""
        self._sent = {"Content-Type": "application/json", **headers}
        try:
            await self.tries.run(self._attempt, lambda: not self._outlet.begun)
        except aiohttp.ClientError:
            # The server ended in the midst of its answer.
            await self._store(of_documents(data_of(self._pieces)), None, broken=SERVER_LOST)
            await self._outlet.fail(NotNow("The model's server ended before its answer did", retry_after_seconds=1))

    async def comment(self) -> None:
        """Keep a stream alive."""
        if not self._outlet.status:
            await self._outlet.start(200, [(b"content-type", EVENT_STREAM), UNBUFFERED, self._rollout_header])
        await self._outlet.comment()

    async def abandon(self) -> None:
        """The client has gone: keep what there was of the answer."""
        if self._pieces and not self._stored:
            await self._store(of_documents(data_of(self._pieces)), None, broken=DISCONNECTED)

    async def _attempt(self, server: Server, credentials: ServerCredentials) -> None:
        self._pieces.clear()
        upstream = self._services.upstream
        logprobs = self._adapter is not None and self._adapter.records_logprobs
        injection, headers = None, self._sent
        inside = await upstream.records(server, credentials)
        if inside:
            headers = {**headers, _RECORD_HEADER: "ids, logprobs" if logprobs else "ids"}
            asked = self._asked
            body = asked.body if asked.model == self._served else asked.changed(model=self._served)
        else:
            body, injection = inject(self._asked, self._served, logprobs=logprobs)
        version = self._version_in(server) if not inside else None
        async with upstream.ask(
            server, credentials, "POST", self._path, body=body, headers=headers, control=inside
        ) as response:
            if response.status >= 400:
                said = await response.read()
                self.tries.refused(server, response.status, adapter=self._adapter is not None)
                await self._outlet.refuse(response.status, _passed_back(response), said)
                return
            told = version_number(response.headers.get("X-Claas-Version"))
            if inside and _RECORD_HEADER not in response.headers:
                upstream.learn(server, records=False)
            name = self._asked.model or self._served
            editor = Editor(self._served, name, injection, hide_thinking=self._services.settings.hide_thinking)
            if response.content_type == "text/event-stream":
                cutter = await self._stream(response, editor)
                documents = data_of(self._pieces)
                await self._store(*self._known(documents, cutter.record, injection, told, version, server))
                await self._outlet.finish(cutter.last)
            else:
                body, line = _cut_tail(response, await response.read())
                stored = await self._store(*self._known([body], line, injection, told, version, server))
                headers_back = _passed_back(response)
                await self._outlet.whole(
                    response.status,
                    [*headers_back, self._rollout_header] if stored else headers_back,
                    editor.document(body),
                )

    async def _stream(self, response: aiohttp.ClientResponse, editor: Editor) -> EventCutter:
        """Pass a stream on, but for its end. Raises aiohttp's ClientError if it is cut off."""
        cutter = EventCutter()
        outlet, pieces, read, feed, edit = (
            self._outlet,
            self._pieces,
            response.content.readany,
            cutter.feed,
            editor.events,
        )
        while data := await read():
            events = feed(data)
            if events:
                pieces.append(events)
                if not outlet.status:
                    await outlet.start(response.status, [*_passed_back(response), UNBUFFERED, self._rollout_header])
                events = edit(events)
                if events:
                    await outlet.write(events)
        if not cutter.ended:
            raise aiohttp.ClientPayloadError
        if not outlet.status:
            await outlet.start(response.status, [*_passed_back(response), UNBUFFERED, self._rollout_header])
        return cutter

    def _known(
        self,
        documents: Sequence[bytes],
        line: bytes | None,
        injection: Injection | None,
        told: int | None,
        version: int | None,
        server: Server,
    ) -> tuple[Answers, Record | None]:
        """What was said, and what is known of its tokens."""
        answers = of_documents(documents)
        if injection is None:
            return answers, read_record(line, self._asked.answers)
        still = version if version == self._version_in(server) else None
        return answers, wire_record(documents, told if told is not None else still)

    def _version_in(self, server: Server) -> int | None:
        """The version that a pod serves, as the operator saw it last."""
        if self._adapter is None:
            return None
        now = self._services.directory.adapter(self._adapter.namespace, self._adapter.name)
        replicas = now.found.status.replicas if now is not None else ()
        return next((each.version for each in replicas if each.pod == server.pod), None)

    async def _store(self, answers: Answers, record: Record | None, *, broken: str | None = None) -> bool:
        """Store the rollouts; False if that failed, which must not keep the client from its answer."""
        self._stored = True
        services = self._services
        writing: asyncio.Future[None] | None = None
        try:
            made = rollouts_of(
                self._asked, self._target, self._rollout_id, answers, record, services.clock(), broken=broken
            )
            # A client that leaves does not end the writing.
            writing = asyncio.ensure_future(services.store.rollouts.add(made))
            writing.add_done_callback(self._written)
            async with asyncio.timeout(STORE_SECONDS):
                await asyncio.shield(writing)
        except Exception as error:  # noqa: BLE001  (whatever goes wrong in the store)
            if writing is None:
                self._lost(error)
            elif not writing.done():
                log.error("a rollout of %s is not stored after %g s", self._served, STORE_SECONDS)
            return False
        for rollout in made:
            kind = "incomplete" if rollout.incomplete is not None else rollout.evidence.value
            services.metrics.rollouts.labels(rollout.namespace, rollout.adapter or "", kind).inc()
        return True

    def _written(self, writing: asyncio.Future[None]) -> None:
        if not writing.cancelled() and (error := writing.exception()) is not None:
            self._lost(error)

    def _lost(self, error: BaseException) -> None:
        log.error("a rollout of %s could not be stored: %s", self._served, type(error).__name__)
        self._services.metrics.lost_rollouts.inc()

    @property
    def _rollout_header(self) -> tuple[bytes, bytes]:
        return b"x-claas-rollout", self._rollout_id.encode()


def _passed_back(response: aiohttp.ClientResponse) -> Headers:
    return [
        (name.encode(), value.encode("latin-1"))
        for name in _PASSED_BACK
        if (value := response.headers.get(name)) is not None
    ]


def _cut_tail(response: aiohttp.ClientResponse, body: bytes) -> tuple[bytes, bytes | None]:
    """A JSON answer and the record behind it."""
    kept, _, length = response.headers.get(_RECORD_HEADER, "").partition("=")
    if kept != "tail" or not length.isdecimal():
        return body, None
    cut = len(body) - int(length)
    return body[:cut], body[cut:]
