"""Records of what the engine samples: who gets one, what is in it, and that nobody else notices."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claas_vllm import Companion
from claas_vllm.asgi import Receive, Scope, Send
from claas_vllm.recording import AnswerRecorder, record_generate
from tests.unit.companion.small_server import Reply, ask, start

TOKEN = "control"
ASKED = {"X-Claas-Token": TOKEN, "X-Claas-Record": "ids, logprobs"}


class Kind(Enum):
    DELTA = auto()
    FINAL_ONLY = auto()
    CUMULATIVE = auto()


@dataclass
class Sampling:
    """The settings that vLLM's handlers give to its engine, as far as the record reads them."""

    output_kind: Kind
    n: int = 1
    logprobs: int | None = None
    detokenize: bool = True
    temperature: float = 0.5
    seed: int | None = 7

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


@dataclass
class Part:
    index: int
    token_ids: Sequence[int]
    logprobs: list[dict[int, SimpleNamespace]] | None
    cumulative_logprob: float | None
    finish_reason: str | None
    stop_reason: str | None = None


@dataclass
class Output:
    prompt_token_ids: list[int]
    outputs: list[Part]
    finished: bool


@dataclass
class Engine:
    """An engine that answers each prompt with `answers`, the token ids of each choice, some at a time."""

    answers: list[list[int]] = field(default_factory=lambda: [[5, 6, 7]])
    pace: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[Sampling] = field(default_factory=list)
    closed: int = 0
    vllm_config: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(model_config=SimpleNamespace(logprobs_mode="raw_logprobs"))
    )

    async def generate(
        self, prompt: dict[str, object], sampling_params: Sampling, request_id: str, **named: object
    ) -> AsyncGenerator[Output, None]:
        self.asked.append(sampling_params)
        prompt_ids = prompt["prompt_token_ids"]
        assert isinstance(prompt_ids, list)
        left = {index: list(ids) for index, ids in enumerate(self.answers)}
        said: dict[int, list[int]] = {index: [] for index in left}
        try:
            while left:
                for index in sorted(left):
                    new, rest = left[index][:2], left[index][2:]
                    said[index] += new
                    if rest:
                        left[index] = rest
                    else:
                        del left[index]
                    if sampling_params.output_kind is Kind.FINAL_ONLY:
                        continue
                    ids = new if sampling_params.output_kind is Kind.DELTA else said[index]
                    yield Output(prompt_ids, [self._part(index, ids, sampling_params, bool(rest))], not left)
                await self.pace.wait()
            if sampling_params.output_kind is Kind.FINAL_ONLY:
                yield Output(prompt_ids, [self._part(i, said[i], sampling_params, False) for i in said], True)
        finally:
            self.closed += 1

    def _part(self, index: int, ids: Sequence[int], sampling: Sampling, more: bool) -> Part:
        logprobs = None if sampling.logprobs is None else [{i: SimpleNamespace(logprob=-i / 8)} for i in ids]
        return Part(index, list(ids), logprobs, None if logprobs is None else -1.0, None if more else "stop")


class Server:
    """An app that answers as vLLM's handlers do: from its engine, in a task of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.state = SimpleNamespace(engine_client=engine, args=SimpleNamespace(api_key=[]))
        self.headers: list[bytes] = []
        self.seen: list[Output] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return
        self.headers = [name for name, _ in scope["headers"]]
        if scope["path"] == "/v1/models":
            await self._begin(send, 200, b"application/json", b'{"data": []}')
            return
        body = json.loads((await receive())["body"])
        # As vLLM's handlers do, so that a client that hangs up ends the work.
        await asyncio.create_task(self._answer(body, send))

    async def _answer(self, body: dict[str, object], send: Send) -> None:
        if body.get("wrong"):
            await self._begin(send, 400, b"application/json", b"{}")
            return
        stream = bool(body.get("stream"))
        sampling = Sampling(Kind.DELTA if stream else Kind.FINAL_ONLY, logprobs=2 if body.get("logprobs") else None)
        prompt = {"type": body.get("type", "token"), "prompt_token_ids": body["prompt"]}
        lora = SimpleNamespace(lora_name=body["model"]) if "@" in str(body["model"]) else None
        answers = self.engine.generate(prompt, sampling, "id", lora_request=lora)
        if stream:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for output in answers:
                self.seen.append(output)
                text = "".join(f"data: {part.token_ids}\n\n" for part in output.outputs).encode()
                await send({"type": "http.response.body", "body": text, "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        self.seen += [output async for output in answers]
        said = json.dumps([part.token_ids for part in self.seen[-1].outputs]).encode()
        await self._begin(send, 200, b"application/json", said)

    async def _begin(self, send: Send, status: int, kind: bytes, body: bytes) -> None:
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("CLAAS_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.delenv("CLAAS_LOCK", raising=False)
    server = Server(Engine())
    server.engine.pace.set()
    return server


@pytest.fixture
async def app(server: Server) -> Companion:
    app = Companion(server)
    await start(app, server)
    return app


async def post(
    app: Companion, server: Server, headers: dict[str, str], path: str = "/v1/completions", **body: object
) -> Reply:
    document = {"model": "base", "prompt": [1, 2], **body}
    return await ask(app, "POST", path, json.dumps(document).encode(), headers=headers, application=server)


def split(reply: Reply) -> tuple[bytes, dict[str, object]]:
    """The answer itself, and its record."""
    how = reply.headers["x-claas-record"]
    if how == "comment":
        body, _, line = reply.body.partition(b": claas-record ")
        assert line.endswith(b"}\n\n")
    else:
        length = int(how.removeprefix("tail="))
        body, line = reply.body[:-length], reply.body[-length:]
        assert reply.headers["content-length"] == str(len(reply.body))
    record = json.loads(line)
    assert isinstance(record, dict)
    return body, record


EXPECTED = {
    "v": 1, "version": None,
    "calls": [
        {
            "prompt_token_ids": [1, 2],
            "sampling": {
                "temperature": 0.5, "top_p": None, "top_k": None, "min_p": None, "presence_penalty": None,
                "frequency_penalty": None, "repetition_penalty": None, "seed": 7, "logprobs_mode": "raw_logprobs",
            },
            "finished": True,
            "outputs": [
                {
                    "index": 0, "token_ids": [5, 6, 7], "logprobs": [-0.625, -0.75, -0.875],
                    "finish_reason": "stop", "stop_reason": None,
                }
            ],
        }
    ],
}  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_record_follows_the_answer_which_has_the_same_bytes(
    app: Companion, server: Server, stream: bool, path: str
) -> None:
    plain = await post(app, server, {}, path, stream=stream)
    body, record = split(await post(app, server, ASKED, path, stream=stream))
    assert body == plain.body
    assert record == EXPECTED
    assert "x-claas-record" not in plain.headers


async def test_log_probabilities_are_recorded_only_if_asked_for_and_never_seen_by_the_handler(
    app: Companion, server: Server
) -> None:
    _, record = split(await post(app, server, {**ASKED, "X-Claas-Record": "ids"}, stream=True))
    assert record["calls"][0]["outputs"][0]["logprobs"] is None  # type: ignore[index]
    assert server.engine.asked[-1].logprobs is None

    server.seen.clear()
    await post(app, server, ASKED, stream=True)
    assert server.engine.asked[-1].logprobs == 0
    assert [part.logprobs or part.cumulative_logprob for output in server.seen for part in output.outputs] == [
        None
    ] * 2


async def test_log_probabilities_that_the_client_asked_for_stay(app: Companion, server: Server) -> None:
    _, record = split(await post(app, server, ASKED, stream=True, logprobs=True))
    assert record == EXPECTED
    assert server.engine.asked[-1].logprobs == 2
    assert all(part.logprobs for output in server.seen for part in output.outputs)


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"X-Claas-Token": TOKEN}, {"X-Claas-Record": "ids"}, {**ASKED, "X-Claas-Token": "another"},
        {**ASKED, "X-Claas-Record": "logprobs"}, {**ASKED, "X-Claas-Record": ""},
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_without_the_token_or_a_wish_the_answer_is_plain(
    app: Companion, server: Server, headers: dict[str, str], stream: bool
) -> None:
    reply = await post(app, server, headers, stream=stream)
    assert reply.status == 200
    assert b"prompt_token_ids" not in reply.body
    assert "x-claas-record" not in reply.headers


async def test_other_routes_and_errors_have_no_record(app: Companion, server: Server) -> None:
    for reply in (
        await post(app, server, ASKED, "/v1/responses"),
        await post(app, server, ASKED, "/v1/chat/completions/batch"),
        await post(app, server, ASKED, wrong=True),
    ):
        assert "x-claas-record" not in reply.headers
        assert b"prompt_token_ids" not in reply.body


async def test_without_the_lock_nothing_is_recorded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAAS_LOCK", "off")
    app = Companion(server)
    await start(app, server)
    assert "x-claas-record" not in (await post(app, server, ASKED)).headers
    assert "generate" not in vars(server.engine)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/is_sleeping"])
async def test_vllm_never_sees_the_companions_headers(app: Companion, server: Server, path: str) -> None:
    await post(app, server, ASKED, path)
    assert server.headers
    assert not [name for name in server.headers if b"claas" in name.lower()]


async def test_the_version_that_answers_is_in_the_record(app: Companion, server: Server) -> None:
    _, record = split(await post(app, server, ASKED, model="coder@7"))
    assert record["version"] == "coder@7"


async def test_a_prompt_that_is_not_of_text_alone_has_no_token_ids(app: Companion, server: Server) -> None:
    _, record = split(await post(app, server, ASKED, type="multimodal"))
    assert record["calls"][0]["prompt_token_ids"] == []  # type: ignore[index]


async def test_concurrent_requests_never_mix_their_records(app: Companion, server: Server) -> None:
    server.engine.pace.clear()
    asked = [
        asyncio.create_task(post(app, server, ASKED, prompt=[number], stream=bool(number % 2))) for number in range(6)
    ]
    for _ in range(20):
        await asyncio.sleep(0)
    server.engine.pace.set()
    prompts = [split(reply)[1]["calls"][0]["prompt_token_ids"] for reply in await asyncio.gather(*asked)]  # type: ignore[index]
    assert prompts == [[number] for number in range(6)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 20])
async def test_a_client_that_hangs_up_ends_the_engines_work_and_leaves_nothing(
    app: Companion, server: Server, monkeypatch: pytest.MonkeyPatch, stream: bool, turns: int
) -> None:
    made: list[weakref.ref[AnswerRecorder]] = []

    class Watched(AnswerRecorder):
        def __init__(self, *, logprobs: bool) -> None:
            super().__init__(logprobs=logprobs)
            made.append(weakref.ref(self))

    monkeypatch.setattr("claas_vllm.in_band.AnswerRecorder", Watched)
    server.engine.pace.clear()
    running = asyncio.create_task(post(app, server, ASKED, stream=stream))
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    del running
    await asyncio.sleep(0)
    gc.collect()
    assert server.engine.closed == len(server.engine.asked)
    assert server.engine.asked or turns < 5
    assert [ref for ref in made if ref() is not None] == []


_ANSWERS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=3)


@settings(deadline=None)
@given(answers=_ANSWERS, kind=st.sampled_from(Kind), logprobs=st.booleans(), enough=st.integers(0, 20))
async def test_every_choice_has_all_its_tokens_and_a_cut_off_answer_says_so(
    answers: list[list[int]], kind: Kind, logprobs: bool, enough: int
) -> None:
    engine = Engine(answers)
    engine.pace.set()
    assert record_generate(SimpleNamespace(state=SimpleNamespace(engine_client=engine)))
    came: dict[int, list[int]] = {}
    whole = True
    with AnswerRecorder(logprobs=logprobs) as recorder:
        outputs = engine.generate({"type": "token", "prompt_token_ids": [1]}, Sampling(kind), "id")
        number = 0
        async for output in outputs:
            for part in output.outputs:
                before = came.get(part.index, []) if kind is Kind.DELTA else []
                came[part.index] = [*before, *part.token_ids]
            number += 1
            if number > enough:
                whole = output.finished
                break
        await outputs.aclose()
        (call,) = json.loads(recorder.line())["calls"]
    assert {found["index"]: found["token_ids"] for found in call["outputs"]} == came
    for found in call["outputs"]:
        assert found["logprobs"] == ([-token / 8 for token in found["token_ids"]] if logprobs else None)
    assert call["finished"] is whole
    if whole:
        assert came == dict(enumerate(answers))
    assert engine.closed == 1


@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_an_answer_that_the_server_cut_off_is_not_finished(
    app: Companion, server: Server, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Part(0, [5], None, None, reason)

    def cut(*_: object) -> Part:
        return part

    monkeypatch.setattr(server.engine, "_part", cut)
    _, record = split(await post(app, server, {**ASKED, "X-Claas-Record": "ids"}))
    assert record["calls"][0]["finished"] is False  # type: ignore[index]


async def test_log_probabilities_that_json_lacks_become_vllms_lowest(
    app: Companion, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {1: float("-inf"), 2: float("nan"), 3: -0.5}
    logprobs = [{token: SimpleNamespace(logprob=value)} for token, value in values.items()]

    def strange(*_: object) -> Part:
        return Part(0, list(values), logprobs, 0.0, "stop")

    monkeypatch.setattr(server.engine, "_part", strange)
    _, record = split(await post(app, server, ASKED))
    assert record["calls"][0]["outputs"][0]["logprobs"] == [-9999.0, -9999.0, -0.5]  # type: ignore[index]


async def test_an_answer_that_can_not_be_recorded_goes_out_all_the_same(
    app: Companion, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = await post(app, server, {}, stream=True)
    # As if a later vLLM called it differently.
    monkeypatch.setattr("claas_vllm.recording._sampled_logprobs", lambda part: part.logprob_lists)
    body, record = split(await post(app, server, ASKED, stream=True))
    assert body == plain.body
    assert record["calls"][0]["finished"] is False  # type: ignore[index]
    assert [entry.getMessage() for entry in caplog.records] == ["An answer can't be recorded: AttributeError"]


async def test_single_tokens_for_beam_search_are_not_recorded() -> None:
    engine = Engine()
    engine.pace.set()
    record_generate(SimpleNamespace(state=SimpleNamespace(engine_client=engine)))
    with AnswerRecorder(logprobs=False) as recorder:
        sampling = Sampling(Kind.FINAL_ONLY, detokenize=False)
        assert [output async for output in engine.generate({"prompt_token_ids": [1]}, sampling, "id")]
        assert json.loads(recorder.line())["calls"] == []


def test_a_server_without_an_engine_records_nothing() -> None:
    assert not record_generate(SimpleNamespace(state=SimpleNamespace(engine_client=None)))


@pytest.mark.parametrize(("lock", "records"), [("on", True), ("off", False)])
async def test_status_tells_whether_the_companion_records(
    server: Server, monkeypatch: pytest.MonkeyPatch, lock: str, records: bool
) -> None:
    monkeypatch.setenv("CLAAS_LOCK", lock)
    app = Companion(server)
    await start(app, server)
    status = await ask(app, "GET", "/claas/status", headers=ASKED, application=server)
    assert status.json()["records"] is records
