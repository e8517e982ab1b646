"""The same requests to a real vLLM and to the proxy, on one model: the same tokens, in answers of the same shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.tinker.proxy_server import BASE_MODEL, TOKEN, ProxyServer
from tests.contract.tinker.proxy_site import ProxySite
from tests.contract.vllm_server import VllmServer
from tests.peers.tinker.server import TinkerPeer

pytestmark = pytest.mark.contract

CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What colour is it?"}], "max_tokens": 20, "temperature": 0.0,
}  # fmt: skip
PROMPT: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0.0}
# Sampling the likeliest token alone is greedy too.
TWICE = {"n": 2, "temperature": 1.0, "top_k": 1}
CONVERSATION: list[Any] = [
    {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "short."}]},
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "blue"}]},
    {"role": "user", "content": "And?", "name": "me"},
]
TOOL = {"type": "function", "function": {"name": "look"}}

ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, QUESTION),
    "chat with tokens": (CHAT, {**QUESTION, "return_token_ids": True}),
    "chat with log-probabilities": (CHAT, {**QUESTION, "logprobs": True, "top_logprobs": 3}),
    "chat with names of tokens": (
        CHAT, {**QUESTION, "logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True},
    ),
    "chat with two choices": (CHAT, {**QUESTION, **TWICE, "return_token_ids": True}),
    "chat with the prompt's log-probabilities": (CHAT, {**QUESTION, "prompt_logprobs": 1}),
    "chat with the prompt's text": (CHAT, {**QUESTION, "return_prompt_text": True}),
    "a conversation": (CHAT, {**QUESTION, "messages": CONVERSATION, "return_token_ids": True}),
    "tools for the template": (
        CHAT, {**QUESTION, "tools": [TOOL], "tool_choice": "none", "return_token_ids": True},
    ),
    "an open end": (
        CHAT,
        {
            **QUESTION, "messages": [*QUESTION["messages"], {"role": "assistant", "content": "It"}],
            "add_generation_prompt": False, "continue_final_message": True, "return_token_ids": True,
        },
    ),
    "a stop string": (CHAT, {**QUESTION, "stop": ["X"], "return_token_ids": True}),
    "a stop string that stays": (
        CHAT, {**QUESTION, "stop": ["X"], "include_stop_str_in_output": True},
    ),
    "a stop token": (COMPLETIONS, {**PROMPT, "stop_token_ids": list(range(60, 120)), "return_token_ids": True}),
    "completion": (COMPLETIONS, PROMPT),
    "completion with log-probabilities": (COMPLETIONS, {**PROMPT, "logprobs": 2, "return_token_ids": True}),
    "completion with sampled ones alone": (COMPLETIONS, {**PROMPT, "logprobs": 0, "return_token_ids": True}),
    "completion by tokens": (COMPLETIONS, {**PROMPT, "prompt": [46, 77, 66], "return_token_ids": True}),
    "several prompts": (COMPLETIONS, {**PROMPT, **TWICE, "prompt": ["Once", "upon a"], "return_token_ids": True}),
    "echo": (COMPLETIONS, {**PROMPT, "echo": True}),
    "echo with log-probabilities": (COMPLETIONS, {**PROMPT, "echo": True, "logprobs": 1}),
    "tokens of a text": (TOKENIZE, {"prompt": "Once <|im_end|> upon", "return_token_strs": True}),
    "tokens of a chat": (TOKENIZE, {"messages": CONVERSATION, "return_token_strs": True}),
    "tokens of what was said": (TOKENIZE, {"messages": QUESTION["messages"], "add_generation_prompt": False}),
    "text of tokens": (DETOKENIZE, {"tokens": [46, 77, 66]}),
}  # fmt: skip
STREAMED = [
    name for name, (path, body) in ANSWERS.items() if path in (CHAT, COMPLETIONS) and "prompt_logprobs" not in body
]
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "an unknown model": (CHAT, {**QUESTION, "model": "another"}),
    "no messages": (CHAT, {**QUESTION, "messages": []}),
    "messages that are none": (CHAT, {**QUESTION, "messages": "x"}),
    "an image": (CHAT, {**QUESTION, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    "a negative temperature": (CHAT, {**QUESTION, "temperature": -1}),
    "top_p of 0": (CHAT, {**QUESTION, "top_p": 0}),
    "no answers": (CHAT, {**QUESTION, "n": 0}),
    "greedy twice": (CHAT, {**QUESTION, "n": 2}),
    "no tokens": (CHAT, {**QUESTION, "max_tokens": 0}),
    "too many tokens": (CHAT, {**QUESTION, "max_tokens": 100_000}),
    "too long a prompt": (COMPLETIONS, {**PROMPT, "prompt": [1] * 20_000}),
    "an unknown token": (COMPLETIONS, {**PROMPT, "prompt": [99_999]}),
    "an empty prompt": (COMPLETIONS, {**PROMPT, "prompt": ""}),
    "too many candidates": (COMPLETIONS, {**PROMPT, "logprobs": 50}),
    "candidates without log-probabilities": (CHAT, {**QUESTION, "top_logprobs": 2}),
    "options of a stream without one": (CHAT, {**QUESTION, "stream_options": {"include_usage": True}}),
    "an empty stop": (CHAT, {**QUESTION, "stop": [""]}),
    "an adapter that is not there": ("/v1/unload_lora_adapter", {"lora_name": "zz"}),
    "an adapter without a path": ("/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""}),
    "a path that is not there": ("/v1/load_lora_adapter", {"lora_name": "t@2", "lora_path": "/nowhere"}),
}  # fmt: skip
DIFFERENT = {"id", "created", "rank", "system_fingerprint", "owned_by", "root"}
"""Values of one server alone. The service does not tell ranks."""


@pytest.fixture(scope="module")
def both(tinker_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of a vLLM and of a proxy. The vLLM has no parsers for reasoning and tools, as the proxy has none."""
    root = tmp_path_factory.mktemp("both")
    vllm = VllmServer(tinker_model, root / "vllm.log", None, None, {}).launch()
    try:
        with TinkerPeer(tinker_model) as peer:
            proxy = ProxyServer(tinker_model, peer.url, peer.model_name, root / "proxy")
            ProxySite(peer, [], proxy).publish(0)
            proxy.launch()
            try:
                proxy.wait_until_ready()
                vllm.wait_until_ready()
                headers = {"X-Claas-Token": TOKEN}
                with (
                    httpx.Client(base_url=vllm.url, timeout=60, trust_env=False) as theirs,
                    httpx.Client(base_url=proxy.url, headers=headers, timeout=60, trust_env=False) as ours,
                ):
                    yield theirs, ours
            finally:
                proxy.stop()
    finally:
        vllm.stop()


def shape(value: Any) -> Any:
    """Keys and types. A list has the shapes of its elements; names of tokens are no keys."""
    if isinstance(value, Mapping):
        if value and all(key.isdecimal() for key in value):
            return {"<token>": shape(next(iter(value.values())))}
        return {
            key: None if key in DIFFERENT else shape(each) for key, each in value.items() if key != "top_logprobs"
        }
    if isinstance(value, list) and not any(isinstance(each, (Mapping, list)) for each in value):
        return "list"
    if isinstance(value, list):
        return sorted({json.dumps(shape(each), sort_keys=True) for each in value})
    return type(value).__name__


def common(value: Any) -> Any:
    """What both must say alike: all but times and numbers that rounding moves."""
    if isinstance(value, Mapping):
        return {key: common(each) for key, each in value.items() if key not in DIFFERENT}
    if isinstance(value, list):
        return [common(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


def near(left: Any, right: Any) -> bool:
    """Equal but for rounding."""
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(near(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(near(*pair) for pair in zip(left, right, strict=True))
    if isinstance(left, float):
        return bool(left == pytest.approx(right, abs=2e-3))
    return bool(left == right)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_has_the_shape_and_the_tokens_of_vllm_s(name: str, both: tuple[httpx.Client, httpx.Client]) -> None:
    path, body = ANSWERS[name]
    theirs, ours = (client.post(path, json={"model": BASE_MODEL, **body}) for client in both)
    assert theirs.status_code == ours.status_code == 200, (theirs.text, ours.text)
    assert theirs.headers["content-type"] == ours.headers["content-type"]
    assert shape(ours.json()) == shape(theirs.json())
    assert near(common(ours.json()), common(theirs.json())), (common(ours.json()), common(theirs.json()))


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_has_the_shape_of_vllm_s(name: str, usage: bool, both: tuple[httpx.Client, httpx.Client]) -> None:
    path, body = ANSWERS[name]
    options = {"stream_options": {"include_usage": True}} if usage else {}
    asked = {"model": BASE_MODEL, **body, "stream": True, **options}
    theirs, ours = (client.post(path, json=asked) for client in both)
    assert theirs.headers["content-type"] == ours.headers["content-type"]
    theirs_sent, ours_sent = events(theirs), events(ours)
    assert shape(ours_sent[0]) == shape(theirs_sent[0])
    assert shape(ours_sent[-1]) == shape(theirs_sent[-1])
    assert set(shape(ours_sent)) <= set(shape(theirs_sent))
    assert joined(ours_sent) == joined(theirs_sent)


def events(answer: httpx.Response) -> list[Any]:
    lines = [line[len("data: ") :] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def joined(documents: list[Any]) -> dict[int, tuple[str, list[int], str]]:
    """Text, tokens and end of each choice."""
    found: dict[int, tuple[str, list[int], str]] = {}
    for choice in (choice for document in documents for choice in document["choices"]):
        text, ids, end = found.get(choice["index"], ("", [], ""))
        piece = choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
        found[choice["index"]] = (
            text + piece, ids + (choice.get("token_ids") or []), choice["finish_reason"] or end,
        )  # fmt: skip
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_has_the_status_of_vllm_s_and_its_fields(
    name: str, both: tuple[httpx.Client, httpx.Client]
) -> None:
    path, body = REFUSED[name]
    theirs, ours = (client.post(path, json={"model": BASE_MODEL, **body}) for client in both)
    assert theirs.status_code == ours.status_code, (theirs.text, ours.text)
    error, expected = ours.json()["error"], theirs.json()["error"]
    assert error.keys() == expected.keys()
    assert error["code"] == expected["code"]
    if expected["type"] != "Bad Request":  # pydantic's, which quotes the input
        assert error["type"] == expected["type"]


@pytest.mark.parametrize("path", ["/v1/models", "/version"])
def test_other_routes_tell_in_vllm_s_shape(path: str, both: tuple[httpx.Client, httpx.Client]) -> None:
    theirs, ours = (client.get(path).json() for client in both)
    if path == "/v1/models":
        theirs, ours = (
            next(card for card in answer["data"] if card["id"] == BASE_MODEL) for answer in (theirs, ours)
        )
    assert shape(ours) == shape(theirs)


@pytest.mark.parametrize("path", [CHAT, "/nothing"])
def test_a_route_that_is_not_there_is_told_as_vllm_does(path: str, both: tuple[httpx.Client, httpx.Client]) -> None:
    theirs, ours = (client.get(path) for client in both)
    assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json())


@pytest.mark.parametrize(("method", "path"), [("POST", "/sleep"), ("GET", "/is_sleeping"), ("POST", "/pause")])
def test_the_proxy_can_not_pause(method: str, path: str, both: tuple[httpx.Client, httpx.Client]) -> None:
    answer = both[1].request(method, path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
