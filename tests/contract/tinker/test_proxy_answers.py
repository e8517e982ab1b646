"""The unmodified OpenAI client against the proxy: it gets what the service samples, in vLLM's shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from tinker import types
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.contract.tinker.proxy_server import BASE_MODEL, SERVED_NAME, TOKEN
from tests.contract.tinker.proxy_site import ProxySite

pytestmark = pytest.mark.contract

QUESTION: list[Any] = [{"role": "user", "content": "What colour is it?"}]
RECORDING = {"X-Claas-Token": TOKEN, "X-Claas-Record": "ids, logprobs"}


@pytest.fixture(scope="module")
def client(shared_site: ProxySite) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=f"{shared_site.proxy.url}/v1", api_key="none", max_retries=0, timeout=60, http_client=http
    ) as client:
        yield client


@pytest.fixture(scope="module")
def http(shared_site: ProxySite) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_site.proxy.url, timeout=60, trust_env=False) as http:
        yield http


@pytest.fixture(scope="module")
def tokenizer(shared_site: ProxySite) -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(shared_site.proxy.model)
    return found


def prompt_of(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


@pytest.mark.parametrize("version", [0, 1])
def test_a_chat_has_the_tokens_that_the_service_samples(
    version: int, shared_site: ProxySite, client: openai.OpenAI, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Version 0 is the base model, by its own name."""
    model = SERVED_NAME if version else BASE_MODEL
    prompt = prompt_of(tokenizer)
    settings = types.SamplingParams(max_tokens=24, temperature=0.8, top_p=0.9, seed=5, stop=[tokenizer.eos_token_id])
    expected = shared_site.sampler(version).sample(types.ModelInput.from_ints(prompt), 2, settings).result()
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=24, temperature=0.8, top_p=0.9, seed=5, n=2, logprobs=True,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    assert answer.model == model
    assert answer.prompt_token_ids == prompt  # type: ignore[attr-defined]
    assert [choice.token_ids for choice in answer.choices] == [each.tokens for each in expected.sequences]  # type: ignore[attr-defined]
    for choice, sequence in zip(answer.choices, expected.sequences, strict=True):
        assert choice.logprobs is not None
        assert [token.logprob for token in choice.logprobs.content or ()] == pytest.approx(sequence.logprobs)
        assert choice.finish_reason == ("stop" if sequence.stop_reason == "stop" else "length")
        kept = [token for token in sequence.tokens if token != tokenizer.eos_token_id]
        # A character that is not complete yet is not shown.
        assert (choice.message.content or "").rstrip("\ufffd") == tokenizer.decode(kept).rstrip("\ufffd")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == sum(len(each.tokens) for each in expected.sequences)


def test_a_stream_is_the_whole_answer_in_chunks(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": SERVED_NAME, "messages": QUESTION, "max_tokens": 40, "temperature": 0, "logprobs": True,
        "top_logprobs": 2,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 4
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    told = [
        token
        for chunk in chunks
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or ()
    ]
    assert whole.choices[0].logprobs is not None
    # The service's sums depend on what it does meanwhile.
    assert [token.token for token in told] == [token.token for token in whole.choices[0].logprobs.content or ()]
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_several_prompts_as_texts_and_as_tokens_are_answered_alike(
    client: openai.OpenAI, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = ["Once upon", "a time"]
    ids = [tokenizer.encode(text) for text in texts]
    by_text = client.completions.create(model=SERVED_NAME, prompt=texts, max_tokens=8, temperature=0)
    by_ids = client.completions.create(model=SERVED_NAME, prompt=ids, max_tokens=8, temperature=0)
    assert [choice.text for choice in by_text.choices] == [choice.text for choice in by_ids.choices]
    assert [choice.index for choice in by_text.choices] == [0, 1]
    one = client.completions.create(model=SERVED_NAME, prompt=texts[1], max_tokens=8, temperature=0)
    assert one.choices[0].text == by_text.choices[1].text


def test_an_answer_ends_at_strings_and_tokens(client: openai.OpenAI, tokenizer: PreTrainedTokenizerFast) -> None:
    asked: dict[str, Any] = {"model": BASE_MODEL, "prompt": "Once upon", "max_tokens": 60, "temperature": 0}
    whole = client.completions.create(**asked, extra_body={"return_token_ids": True}).choices[0]
    assert whole.finish_reason == "length"
    stop = next(letter for letter in whole.text[5:] if letter.isascii() and letter.isalpha())
    by_text = client.completions.create(**asked, stop=stop).choices[0]
    assert by_text.text == whole.text[: whole.text.index(stop)]
    assert (by_text.finish_reason, by_text.stop_reason) == ("stop", stop)
    tokens: list[int] = whole.token_ids
    by_token = client.completions.create(
        **asked, extra_body={"stop_token_ids": [tokens[9]], "return_token_ids": True}
    ).choices[0]
    assert by_token.token_ids == tokens[: tokens.index(tokens[9]) + 1]
    assert (by_token.finish_reason, by_token.stop_reason) == ("stop", tokens[9])


def test_a_score_is_that_of_the_way_by_tokens_which_the_gateway_takes(http: httpx.Client) -> None:
    named = {"model": SERVED_NAME}
    score = http.post("/v1/score", json={**named, "messages": QUESTION, "completion": "It is blue."}).json()
    chat = {**named, "messages": QUESTION, "add_generation_prompt": True}
    prompt = http.post("/tokenize", json=chat).json()["tokens"]
    text = {**named, "prompt": "It is blue.", "add_special_tokens": False}
    completion = http.post("/tokenize", json=text).json()["tokens"]
    asked = {**named, "prompt": [*prompt, *completion], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    told = http.post("/v1/completions", json=asked).json()["choices"][0]["prompt_logprobs"][len(prompt) :]
    entries = [position[str(token)] for position, token in zip(told, completion, strict=True)]
    assert score["logprobs"] == pytest.approx([entry["logprob"] for entry in entries], abs=1e-4)
    assert score["tokens"] == [entry["decoded_token"] for entry in entries]
    assert score["logprob_sum"] == pytest.approx(sum(score["logprobs"]))
    assert (score["prompt_tokens"], score["completion_tokens"]) == (len(prompt), len(completion))


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": QUESTION, "n": 2, "seed": 3}),
        ("/v1/completions", {"prompt": ["Once", "upon a"], "n": 2, "stop": ["e"]}),
        ("/v1/completions", {"prompt": "Once", "echo": True}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_record_behind_an_answer_is_what_was_sampled(
    path: str, asked: dict[str, Any], stream: bool, http: httpx.Client
) -> None:
    body = {"model": SERVED_NAME, "max_tokens": 12, "return_token_ids": True, "stream": stream, **asked}
    answer = http.post(path, json=body, headers=RECORDING)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-claas-version"] == f"{SERVED_NAME}@1"
    content = answer.content
    if stream:
        assert answer.headers["x-claas-record"] == "comment"
        content, _, line = content.rpartition(b": claas-record ")
        documents = [
            json.loads(line[len(b"data: ") :]) for line in content.split(b"\n\n") if line.startswith(b"data: {")
        ]
    else:
        length = int(answer.headers["x-claas-record"].removeprefix("tail="))
        content, line = content[:-length], content[-length:]
        documents = [json.loads(content)]
    record = json.loads(line)
    assert record["version"] == f"{SERVED_NAME}@1"
    ids: dict[int, list[int]] = {}
    for choice in (choice for document in documents for choice in document["choices"]):
        ids.setdefault(choice["index"], []).extend(choice.get("token_ids") or [])
    recorded = [output for call in record["calls"] for output in call["outputs"]]
    assert [output["token_ids"] for output in recorded] == [ids[index] for index in sorted(ids)]
    assert all(len(output["logprobs"]) == len(output["token_ids"]) for output in recorded)
    assert all(call["finished"] and call["prompt_token_ids"] for call in record["calls"])


def test_nobody_without_the_token_gets_a_record_or_controls_the_proxy(http: httpx.Client) -> None:
    body = {"model": SERVED_NAME, "messages": QUESTION, "max_tokens": 2}
    answer = http.post("/v1/chat/completions", json=body, headers={"X-Claas-Record": "ids"})
    assert "x-claas-record" not in answer.headers
    assert http.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "/b"}).status_code == 403
    assert http.get("/claas/status").status_code == 403
    assert http.get("/ready").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "another"}, 404, "model"),
        ({"presence_penalty": 1}, 400, "presence_penalty"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 20_000}]}, 400, "input_tokens"),
        ({"max_tokens": 100_000}, 400, "max_tokens"),
    ],
)
def test_what_is_refused_is_an_error_that_the_client_knows(
    body: dict[str, Any], status: int, param: str, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": SERVED_NAME, "messages": QUESTION, **body})
    assert caught.value.status_code == status
    error: Any = caught.value.body
    assert (error["code"], error["param"]) == (status, param)
    assert error["type"] in ("BadRequestError", "NotFoundError")
    if param == "input_tokens":
        assert "maximum context length" in error["message"]


def test_the_models_are_the_base_and_the_served_name(client: openai.OpenAI, shared_site: ProxySite) -> None:
    cards: dict[str, Any] = {model.id: model for model in client.models.list()}
    assert set(cards) == {BASE_MODEL, SERVED_NAME}
    assert cards[BASE_MODEL].parent is None
    assert cards[BASE_MODEL].max_model_len == 16384
    assert cards[SERVED_NAME].parent == BASE_MODEL
    assert cards[SERVED_NAME].root == str(shared_site.folder(1))
