"""A stand-in for one vLLM server whose answers are scripted: real sockets, vLLM's routes and bytes, and, if it is to
have the companion, the companion's protocol.

A token is a character of the answer, and its id the character's code point.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from pydantic import JsonValue

Body = dict[str, JsonValue]

LOGPROB = -0.25
"""Of each sampled token."""
PROMPT_IDS = [1, 2, 3]


@dataclass
class Script:
    """How the server behaves."""

    answer: str | Callable[[Body], str] = "The capital of France is Paris."
    """What each answer says."""
    pieces: Sequence[str] | None = None
    """The same in pieces, one for each event; None: a character each."""
    status: int = 200
    error: str = "maximum context length is 2048 tokens"
    """The message of an answer with another status than 200."""
    finish_reason: str = "stop"
    models: Sequence[str] = ("base", "coder")
    """What it serves; any other model is 404. Empty: any."""
    companion: bool = True
    records: bool = True
    """Whether that companion records; older ones do not."""
    version: str | None = "coder@7"
    control_token: str | None = "the-control-token"
    api_key: str | None = None
    dies_after: int | None = None
    """Events after which the connection is cut."""
    pauses_after: int | None = None
    """Events after which it falls asleep."""
    piece_seconds: float = 0.0
    """Between two events."""
    lost_ids: int = 0
    """How many ids the record lacks."""
    fails_midway: bool = False
    """Whether an error takes the place of the stream's last event."""
    tool_calls: bool = False
    """Whether a request with tools is answered by a call of the first one."""


@dataclass
class OpenAIServer:
    """The server. `asked` has what reached it; clear `awake` to have it sleep as vLLM does: it takes requests, and
    answers after the wake."""

    script: Script = field(default_factory=Script)
    asked: list[tuple[str, Body]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    thinks: asyncio.Event = field(default_factory=asyncio.Event)
    """Clear it to have answers take long, though it is awake."""
    running: int = 0
    written: int = 0
    """Events of streams that were taken."""
    aborted: int = 0
    """Requests whose client went away."""
    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self.tls is not None else 'http'}://{self.host}:{self.port}"

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[OpenAIServer]:
        """Listen on a loopback address."""
        self.awake.set()
        self.thinks.set()
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_get("/health", self._health)
        application.router.add_get("/v1/models", self._models)
        application.router.add_get("/claas/status", self._status)
        application.router.add_get("/is_sleeping", self._is_sleeping)
        application.router.add_post("/tokenize", self._tokenize)
        application.router.add_post("/v1/chat/completions", self._chat)
        application.router.add_post("/v1/completions", self._complete)
        self.extend(application)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.01)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, ssl_context=self.tls).start()
            self.host, self.port = runner.addresses[0][:2]
            yield self
        finally:
            await runner.cleanup()

    def extend(self, application: web.Application) -> None:
        """Add routes; for servers that can more."""

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        self._note(request, {})
        cards: list[JsonValue] = [{"id": each, "object": "model", "owned_by": "vllm"} for each in self.script.models]
        return web.json_response({"object": "list", "data": cards})

    async def _status(self, request: web.Request) -> web.Response:
        if not self.script.companion:
            return _error(404, "Not Found")
        if not self._controlled(request):
            return _error(403, "this route needs the control token")
        return web.json_response({"companion_version": "0.1.0", "aliases": {}, "records": self.script.records})

    async def _is_sleeping(self, request: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": not self.awake.is_set()})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        text = "".join(
            f"<{message['role']}>{message['content']}"
            for message in _objects(body.get("messages"))
            if message.get("content")
        )
        text = str(body.get("prompt", text + ("<assistant>" if body.get("add_generation_prompt", True) else "")))
        ids = [ord(character) for character in text]
        return web.json_response({"tokens": ids, "count": len(ids), "max_model_len": 2048})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, await self._read(request), chat=True)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, await self._read(request), chat=False)

    async def _read(self, request: web.Request) -> Body:
        body: Body = await request.json()
        self._note(request, body)
        return body

    def _note(self, request: web.Request, body: Body) -> None:
        self.asked.append((request.path, body))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})

    def _controlled(self, request: web.Request) -> bool:
        token = self.script.control_token
        return token is not None and request.headers.get("X-Claas-Token") == token

    async def _answer(self, request: web.Request, body: Body, *, chat: bool) -> web.StreamResponse:
        script = self.script
        self.running += 1
        try:
            if script.api_key is not None and request.headers.get("Authorization") != f"Bearer {script.api_key}":
                return _error(401, "Unauthorized")
            if script.models and body.get("model") not in script.models:
                return _error(404, f"The model `{body.get('model')}` does not exist.")
            if script.status != 200:
                return _error(script.status, script.error)
            if body.get("stream_options") and not body.get("stream"):
                return _error(400, "Stream options can only be defined when `stream=True`.")
            if body.get("tools") == []:
                return _error(400, "`tools` must not be an empty array.")
            answer = _Answer(script, body, self._recording(request), chat=chat)
            if body.get("stream"):
                return await self._stream(request, answer)
            await self._free()
            if script.dies_after is not None:
                assert request.transport is not None
                request.transport.abort()
            return answer.document()
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    async def _free(self) -> None:
        await self.awake.wait()
        await self.thinks.wait()

    def _recording(self, request: web.Request) -> str | None:
        wanted = request.headers.get("X-Claas-Record")
        records = self.script.companion and self.script.records
        return wanted if records and self._controlled(request) else None

    async def _stream(self, request: web.Request, answer: _Answer) -> web.StreamResponse:
        script = self.script
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", **answer.headers()})
        await stream.prepare(request)
        for number, event in enumerate(answer.events()):
            if script.pauses_after == number:
                self.awake.clear()
            await self._free()
            if script.dies_after == number:
                assert request.transport is not None
                request.transport.abort()
                return stream
            await stream.write(event)
            self.written += 1
            if script.piece_seconds:
                await asyncio.sleep(script.piece_seconds)
        await stream.write(b"data: [DONE]\n\n")
        if answer.recording is not None:
            await stream.write(b": claas-record " + answer.record() + b"\n\n")
        await stream.write_eof()
        return stream


class _Answer:
    """The answer to one request."""

    def __init__(self, script: Script, body: Body, recording: str | None, *, chat: bool) -> None:
        self.recording = recording
        self._script = script
        self._body = body
        self._chat = chat
        self._ids = bool(body.get("return_token_ids"))
        wanted = body.get("logprobs")
        self._logprobs = wanted is True if chat else wanted is not None
        self._count = int(str(body.get("n") or 1))
        prompts = body.get("prompt")
        several = not chat and isinstance(prompts, list) and all(isinstance(each, str) for each in prompts)
        self._prompts = len(prompts) if several and isinstance(prompts, list) else 1
        self._text = script.answer(body) if callable(script.answer) else script.answer

    def headers(self) -> dict[str, str]:
        """Headers of an event stream."""
        version = {"X-Claas-Version": self._script.version} if self._script.version else {}
        return {**version, **({"X-Claas-Record": "comment"} if self.recording is not None else {})}

    def document(self) -> web.Response:
        """The answer at once."""
        body: Body = {
            "id": "chatcmpl-1" if self._chat else "cmpl-1",
            "object": "chat.completion" if self._chat else "text_completion",
            "created": 1_700_000_000,
            "model": self._body.get("model"),
            "choices": [self._choice(index) for index in range(self._all)],
            "usage": self._usage(),
        }
        if self._chat:
            body["prompt_token_ids"] = list[JsonValue](PROMPT_IDS) if self._ids else None
        data = _dumped(body)
        headers = self.headers()
        if self.recording is not None:
            record = self.record()
            headers["X-Claas-Record"] = f"tail={len(record)}"
            data += record
        return web.Response(body=data, content_type="application/json", headers=headers)

    def events(self) -> list[bytes]:
        """The events of the answer in a stream."""
        pieces = list(self._script.pieces if self._script.pieces is not None else self._text)
        events = []
        if self._chat:
            for index in range(self._all):
                choice = self._part(index, {"role": "assistant", "content": ""}, None)
                ids: JsonValue = list(PROMPT_IDS) if self._ids else None
                events.append(self._event([choice], prompt_token_ids=ids))
        for number, piece in enumerate(pieces):
            for index in range(self._all):
                last = self._script.finish_reason if number == len(pieces) - 1 else None
                delta: Body = {"content": piece} if self._chat else {}
                choice = self._part(index, delta, last, piece)
                if not self._chat:
                    choice["prompt_token_ids"] = list(PROMPT_IDS) if self._ids and number == 0 else None
                events.append(self._event([choice]))
        options = self._body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            events.append(self._event([], usage=self._usage()))
        if self._script.fails_midway:
            events[-1] = b"data: " + _dumped({"error": {"message": "it failed", "code": 500}}) + b"\n\n"
        return events

    def record(self) -> bytes:
        """The companion's record."""
        ids = self._token_ids()
        ids = ids[: len(ids) - self._script.lost_ids]
        logprobs = [LOGPROB] * len(ids) if "logprobs" in (self.recording or "") else None
        outputs: list[JsonValue] = [
            {
                "index": index,
                "token_ids": list[JsonValue](ids),
                "logprobs": list[JsonValue](logprobs) if logprobs is not None else None,
                "finish_reason": self._script.finish_reason,
                "stop_reason": None,
            }
            for index in range(self._count)
        ]
        call: JsonValue = {
            "prompt_token_ids": list(PROMPT_IDS),
            "sampling": {"temperature": self._body.get("temperature", 1.0)},
            "finished": not self._script.fails_midway,
            "outputs": outputs,
        }
        return _dumped({"v": 1, "version": self._script.version, "calls": [call] * self._prompts})

    @property
    def _all(self) -> int:
        return self._count * self._prompts

    def _token_ids(self) -> list[int]:
        return [ord(character) for character in self._text]

    def _usage(self) -> JsonValue:
        tokens = len(self._token_ids()) * self._all
        prompt = len(PROMPT_IDS) * self._prompts
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}

    def _choice(self, index: int) -> Body:
        choice: Body = {"index": index}
        tools = _objects(self._body.get("tools"))
        called = self._script.tool_calls and bool(tools)
        if self._chat and called:
            function = tools[0]["function"]
            assert isinstance(function, dict)
            call: JsonValue = {
                "id": "call-1",
                "type": "function",
                "function": {"name": function["name"], "arguments": '{"city": "Paris"}'},
            }
            choice["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
        elif self._chat:
            choice["message"] = {"role": "assistant", "content": self._text, "tool_calls": []}
        else:
            choice["text"] = self._text
            choice["prompt_token_ids"] = list[JsonValue](PROMPT_IDS) if self._ids else None
        choice["logprobs"] = self._logprobs_of(self._text)
        prompt = self._body.get("prompt")
        if self._body.get("prompt_logprobs") is not None and isinstance(prompt, list):
            told: list[JsonValue] = [
                {str(token): {"logprob": LOGPROB, "rank": 1, "decoded_token": chr(int(str(token)))}}
                for token in prompt
            ]
            choice["prompt_logprobs"] = [None, *told[1:]]
        choice["finish_reason"] = "tool_calls" if called else self._script.finish_reason
        choice["stop_reason"] = None
        choice["token_ids"] = list[JsonValue](self._token_ids()) if self._ids else None
        return choice

    def _part(self, index: int, delta: Body, finish_reason: str | None, piece: str = "") -> Body:
        part: Body = {"index": index, "delta": delta} if self._chat else {"index": index, "text": piece}
        part["logprobs"] = self._logprobs_of(piece) if piece else None
        part["finish_reason"] = finish_reason
        if piece:
            ids: JsonValue = [ord(character) for character in piece] if self._ids else None
            part["token_ids"] = ids
        return part

    def _logprobs_of(self, text: str) -> JsonValue:
        if not self._logprobs:
            return None
        if not self._chat:
            return {"tokens": list(text), "token_logprobs": [LOGPROB] * len(text), "text_offset": [0] * len(text)}
        count = int(str(self._body.get("top_logprobs") or 0))
        entries: list[JsonValue] = [
            {
                "token": character,
                "logprob": LOGPROB,
                "bytes": list(character.encode()),
                "top_logprobs": [
                    {"token": character, "logprob": LOGPROB, "bytes": list(character.encode())} for _ in range(count)
                ],
            }
            for character in text
        ]
        return {"content": entries}

    def _event(self, choices: list[Body], **more: JsonValue) -> bytes:
        event: Body = {
            "id": "chatcmpl-1" if self._chat else "cmpl-1",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": 1_700_000_000,
            "model": self._body.get("model"),
            "choices": list[JsonValue](choices),
            **more,
        }
        return b"data: " + _dumped(event) + b"\n\n"


def _error(status: int, message: str) -> web.Response:
    error: Body = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


def _objects(value: JsonValue) -> list[Body]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _dumped(value: JsonValue) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
