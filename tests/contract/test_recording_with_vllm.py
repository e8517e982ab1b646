"""Recording in the real vLLM: the client's bytes do not change, and the record is what was sampled."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from claas_vllm_client import PauseMode, ProbeSpec, VllmClient, put_in_service, take_out_of_service
from tests.contract.site import API_KEY, TOKEN, Site
from tests.contract.vllm_server import BASE_MODEL

pytestmark = pytest.mark.contract

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASKED = {"X-Claas-Token": TOKEN, "X-Claas-Record": "ids, logprobs"}
ENDLESS_ANSWER_TOKENS = 16_000
TRIES = 15
NAME = "team/recorded"

# A random model says what the parsers look for only when it is made to.
SAID = (
    "Here is my thought process: Where? Here is my response: There."
    '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'
)
# In chunks of several tokens: a long answer in single ones is never cut twice alike on a busy machine.
FORCED = {"structured_outputs": {"choice": [SAID]}, "max_tokens": 500, "stream_interval": 8}
TOOLS = {
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "look",
                "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
            },
        }
    ]
}
QUESTION = {"messages": [{"role": "user", "content": "What colour is it?"}], "max_tokens": 12, "temperature": 0.0}
PROMPT = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0.0}
# Greedy requests may not have n > 1; this one samples the likeliest token all the same.
TWICE = {"n": 2, "temperature": 1.0, "top_k": 1}
REASONING = {**QUESTION, **FORCED}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, QUESTION),
    "two choices": (CHAT, {**QUESTION, **TWICE}),
    "log-probabilities": (CHAT, {**QUESTION, "logprobs": True, "top_logprobs": 2}),
    "token ids": (CHAT, {**QUESTION, "return_token_ids": True}),
    "a stop string": (CHAT, {**QUESTION, "max_tokens": 200, "stop": ["e", "U"]}),
    "reasoning": (CHAT, REASONING),
    "hidden reasoning": (CHAT, {**REASONING, "include_reasoning": False}),
    "tools": (CHAT, {**REASONING, **TOOLS}),
    "tools and hidden reasoning": (CHAT, {**REASONING, **TOOLS, "include_reasoning": False, "logprobs": True}),
    "completion": (COMPLETIONS, PROMPT),
    "several prompts": (COMPLETIONS, {**PROMPT, **TWICE, "prompt": ["Once", "upon a", "time"]}),
    "echo": (COMPLETIONS, {**PROMPT, "echo": True}),
    "echo with log-probabilities": (COMPLETIONS, {**PROMPT, "echo": True, "logprobs": 1}),
}
STREAMED: dict[str, dict[str, Any]] = {
    "whole": {},
    "streamed": {"stream": True},
    "with usage": {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
}


@dataclass(frozen=True)
class Recorded:
    """An answer, its record behind it, and how the two were told apart."""

    body: bytes
    record: dict[str, Any]
    version: str | None

    @property
    def calls(self) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = self.record["calls"]
        return calls

    @property
    def outputs(self) -> list[dict[str, Any]]:
        return [output for call in self.calls for output in call["outputs"]]


@pytest.fixture
async def http(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with httpx.AsyncClient(base_url=site.server.url, headers=headers, timeout=60.0, trust_env=False) as http:
        yield http


@pytest.fixture
async def client(site: Site) -> AsyncIterator[VllmClient]:
    async with VllmClient(site.server.url, control_token=TOKEN, api_key=API_KEY, timeout_seconds=60.0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(site: Site) -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(site.server.model)
    return found


async def plain(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> bytes:
    answer = await http.post(path, json={"model": BASE_MODEL, **body})
    assert answer.status_code == httpx.codes.OK, answer.text
    assert "x-claas-record" not in answer.headers
    return answer.content


async def recorded(http: httpx.AsyncClient, path: str, body: dict[str, Any], wish: str = "ids, logprobs") -> Recorded:
    answer = await http.post(path, json={"model": BASE_MODEL, **body}, headers={**ASKED, "X-Claas-Record": wish})
    assert answer.status_code == httpx.codes.OK, answer.text
    how = answer.headers["x-claas-record"]
    if how == "comment":
        rest, between, line = answer.content.rpartition(b": claas-record ")
        assert rest.endswith(b"data: [DONE]\n\n")
        assert between
        assert re.fullmatch(rb"[^\n]+\n\n", line)
    else:
        length = int(how.removeprefix("tail="))
        assert int(answer.headers["content-length"]) == len(answer.content)
        rest, line = answer.content[:-length], answer.content[-length:]
    return Recorded(rest, json.loads(line), answer.headers.get("x-claas-version"))


def comparable(body: bytes) -> bytes:
    """The answer without what differs between any two answers: identifiers, the time, and which of several choices
    comes first."""
    body = re.sub(rb'"id":"[a-z]+-(tool-)?[0-9a-f]+"', b'"id":"-"', body)
    body = re.sub(rb'"created":\d+', b'"created":0', body)
    # Stable: the chunks of one choice keep their order, and what belongs to no choice comes last.
    told: list[bytes] = body.split(b"\n\n")
    told.sort(key=_choice)
    return b"\n\n".join(told)


def _choice(event: bytes) -> int:
    found = re.search(rb'"choices":\[\{"index":(\d+)', event)
    return int(found[1]) if found else 1_000


def events(body: bytes) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("streamed", STREAMED)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_client_gets_the_bytes_of_an_unrecorded_answer(
    http: httpx.AsyncClient, tokenizer: PreTrainedTokenizerFast, kind: str, streamed: str
) -> None:
    path, body = KINDS[kind]
    body = {**body, **STREAMED[streamed]}
    without: set[bytes] = set()
    with_record: set[bytes] = set()
    # How many tokens a chunk has is up to the machine's load; with and without a record it may be the same.
    for _ in range(TRIES):
        without.add(comparable(await plain(http, path, body)))
        answer = await recorded(http, path, body)
        with_record.add(comparable(answer.body))
        if without & with_record:
            break
    else:
        assert with_record == without

    prompts = body["prompt"] if isinstance(body.get("prompt"), list) else [None]
    assert len(answer.calls) == len(prompts)
    assert all(call["finished"] and call["prompt_token_ids"] for call in answer.calls)
    assert [output["index"] for output in answer.calls[0]["outputs"]] == list(range(body.get("n", 1)))
    assert all(len(output["logprobs"]) == len(output["token_ids"]) > 0 for output in answer.outputs)
    assert all(logprob <= 0 for output in answer.outputs for logprob in output["logprobs"])
    if not streamed.startswith("streamed"):
        usage = json.loads(answer.body)["usage"] if streamed == "whole" else events(answer.body)[-1]["usage"]
        assert usage["completion_tokens"] == sum(len(output["token_ids"]) for output in answer.outputs)
        assert usage["prompt_tokens"] == sum(len(call["prompt_token_ids"]) for call in answer.calls)
    if "structured_outputs" in body:
        assert tokenizer.decode(answer.outputs[0]["token_ids"], skip_special_tokens=True) == SAID


async def test_the_parsers_found_what_the_model_was_made_to_say(http: httpx.AsyncClient) -> None:
    # Without this the cases above would compare answers that no parser changed.
    body = {**REASONING, **TOOLS}
    message = json.loads(await plain(http, CHAT, body))["choices"][0]["message"]
    assert message["reasoning"].strip() == "Where?"
    assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": "sky"}'}
    hidden = json.loads(await plain(http, CHAT, {**REASONING, "include_reasoning": False}))
    assert hidden["choices"][0]["message"]["reasoning"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_ids_are_those_that_vllm_itself_reports_and_so_are_log_probabilities(
    http: httpx.AsyncClient, stream: bool
) -> None:
    asked = {**QUESTION, "return_token_ids": True, "logprobs": True, "stream": stream}
    answer = await recorded(http, CHAT, asked)
    documents = events(answer.body) if stream else [json.loads(answer.body)]
    choices = [choice for document in documents for choice in document["choices"]]
    entries = [entry for choice in choices for entry in (choice["logprobs"] or {}).get("content", ())]
    (output,) = answer.outputs
    assert output["token_ids"] == [token for choice in choices for token in choice.get("token_ids") or ()]
    assert output["logprobs"] == [entry["logprob"] for entry in entries]
    assert answer.calls[0]["prompt_token_ids"] == documents[0]["prompt_token_ids"]


async def test_log_probabilities_are_left_out_where_only_ids_were_asked_for(http: httpx.AsyncClient) -> None:
    answer = await recorded(http, CHAT, QUESTION, "ids")
    assert [output["logprobs"] for output in answer.outputs] == [None]
    assert len(answer.outputs[0]["token_ids"]) == QUESTION["max_tokens"]


async def test_the_settings_are_those_that_vllm_sampled_with(http: httpx.AsyncClient) -> None:
    settings = {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
    sampled = await recorded(http, CHAT, {**QUESTION, **settings, "top_k": 20})
    greedy = await recorded(http, CHAT, {**QUESTION, "top_p": 0.5, "top_k": 7})
    assert sampled.calls[0]["sampling"] == {
        **settings, "top_k": 20, "presence_penalty": 0.0, "seed": None, "logprobs_mode": "raw_logprobs",
    }  # fmt: skip
    # vLLM itself drops what has no effect at temperature 0.
    assert (greedy.calls[0]["sampling"]["top_p"], greedy.calls[0]["sampling"]["top_k"]) == (1.0, 0)


async def test_two_choices_and_many_streams_never_mix_their_records(
    http: httpx.AsyncClient, tokenizer: PreTrainedTokenizerFast
) -> None:
    async def one(number: int) -> None:
        prompt = f"Number {number} says"
        body = {
            "prompt": [prompt, prompt + " again"], "n": 2, "max_tokens": 20, "temperature": 1.0,
            "stream": number % 2 == 0, "return_token_ids": True,
        }  # fmt: skip
        answer = await recorded(http, COMPLETIONS, body)
        told: dict[int, list[int]] = {}
        for document in events(answer.body) if body["stream"] else [json.loads(answer.body)]:
            for choice in document["choices"]:
                told.setdefault(choice["index"], []).extend(choice["token_ids"] or ())
        assert [tokenizer.decode(call["prompt_token_ids"]) for call in answer.calls] == body["prompt"]
        assert [output["token_ids"] for output in answer.outputs] == [told[index] for index in range(4)]
        assert len({tuple(ids) for ids in told.values()}) == 4

    await asyncio.gather(*(one(number) for number in range(8)))


@pytest.mark.parametrize("headers", [{}, {"X-Claas-Token": "wrong"}, {"X-Claas-Token": API_KEY}])
async def test_without_the_token_there_is_no_record(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for stream in (False, True):
        body = {"model": BASE_MODEL, **QUESTION, "stream": stream}
        answer = await http.post(CHAT, json=body, headers={"X-Claas-Record": "ids", **headers})
        assert answer.status_code == httpx.codes.OK
        assert "x-claas-record" not in answer.headers
        assert 'prompt_token_ids":[' not in answer.text


async def test_a_version_is_named_in_the_record_and_nowhere_in_the_answer(
    site: Site, http: httpx.AsyncClient, client: VllmClient
) -> None:
    await put_in_service(client, served_name=NAME, version=20, path=site.path(20), probe=ProbeSpec("The sky is"))
    base = await recorded(http, CHAT, QUESTION)
    for stream in (False, True):
        answer = await recorded(http, CHAT, {**QUESTION, "model": NAME, "stream": stream})
        assert answer.record["version"] == answer.version == f"{NAME}@20"
        assert f'"model":"{NAME}"'.encode() in answer.body
        assert f"{NAME}@20".encode() not in answer.body
        assert answer.outputs[0]["token_ids"] != base.outputs[0]["token_ids"]
    assert (base.record["version"], base.version) == (None, None)
    assert await take_out_of_service(client, served_name=NAME)


async def test_an_error_has_no_record(http: httpx.AsyncClient) -> None:
    for body in ({"model": "nope", **QUESTION}, {"model": BASE_MODEL, **QUESTION, "temperature": -1}):
        answer = await http.post(CHAT, json=body, headers=ASKED)
        assert answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.BAD_REQUEST)
        assert "x-claas-record" not in answer.headers
        assert set(answer.json()) == {"error"}


async def test_what_came_before_a_client_hung_up_is_how_the_unrecorded_answer_begins(
    http: httpx.AsyncClient,
) -> None:
    body = {"model": BASE_MODEL, **QUESTION, "max_tokens": ENDLESS_ANSWER_TOKENS, "ignore_eos": True, "stream": True}

    async def beginning(headers: dict[str, str]) -> bytes:
        came = b""
        async with http.stream("POST", CHAT, json=body, headers=headers) as answer:
            async for piece in answer.aiter_bytes():
                came += piece
                if came.count(b"\n\n") >= 8:
                    break
        return b"\n\n".join(comparable(came).split(b"\n\n")[:8])

    without: set[bytes] = set()
    with_record: set[bytes] = set()
    for _ in range(TRIES):
        without.add(await beginning({}))
        with_record.add(await beginning(ASKED))
        if without & with_record:
            break
    else:
        assert with_record == without


@pytest.mark.parametrize("headers", [{}, ASKED], ids=["plain", "recorded"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_ends_the_work_of_the_engine(
    http: httpx.AsyncClient, client: VllmClient, headers: dict[str, str], path: str, stream: bool
) -> None:
    asked = QUESTION if path == CHAT else {**PROMPT, "prompt": ["Once", "upon"]}
    body = {
        "model": BASE_MODEL, **asked, "max_tokens": ENDLESS_ANSWER_TOKENS, "ignore_eos": True, "stream": stream,
    }  # fmt: skip
    running = asyncio.create_task(_read(http, path, body, headers))
    await _until(client, lambda requests: requests > 0)
    running.cancel()
    await asyncio.wait([running])
    await _until(client, lambda requests: requests == 0)
    assert running.cancelled(), "the answer ended before the client hung up"
    after = await recorded(http, CHAT, QUESTION)
    assert len(after.calls) == 1


async def test_what_came_before_the_engine_cut_an_answer_off_is_recorded_as_unfinished(
    http: httpx.AsyncClient, client: VllmClient
) -> None:
    body = {**PROMPT, "max_tokens": ENDLESS_ANSWER_TOKENS, "ignore_eos": True, "stream": True}
    running = asyncio.create_task(recorded(http, COMPLETIONS, body))
    await _until(client, lambda requests: requests > 0)
    await client.sleep(mode=PauseMode.ABORT)
    await client.wake_up()
    answer = await running
    (call,) = answer.calls
    assert not call["finished"]
    assert call["outputs"][0]["finish_reason"] == "abort"


async def test_logs_have_neither_the_token_nor_a_record(site: Site) -> None:
    log = site.server.log.read_text(errors="replace").lower()
    assert TOKEN not in log
    assert "claas-record" not in log
    assert '"prompt_token_ids":[' not in log


async def _read(http: httpx.AsyncClient, path: str, body: dict[str, Any], headers: dict[str, str]) -> None:
    async with http.stream("POST", path, json=body, headers=headers) as answer:
        async for _ in answer.aiter_bytes():
            pass


async def _until(client: VllmClient, holds: Callable[[int], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not holds(running := (await client.load()).running):
        assert time.monotonic() < deadline, f"{running} requests are running"
        await asyncio.sleep(0.05)
