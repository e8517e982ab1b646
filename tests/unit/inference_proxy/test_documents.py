"""Answers in vLLM's shapes; the chunks of a stream are the whole answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_inference_proxy.generation.answer import AnswerToken, FinishReason, SampledAnswer
from claas_inference_proxy.generation.chunks import chat_chunks, completion_chunks
from claas_inference_proxy.generation.documents import (
    Document,
    Heading,
    Prompted,
    Shown,
    chat_document,
    completion_document,
)
from claas_inference_proxy.generation.logprobs import Spelling
from claas_inference_proxy.prompts.tokenizer import Tokenizer
from claas_inference_proxy.upstream.sampling import PromptToken

HEADING = Heading("chatcmpl-1", 7, "tone@1")


def answer(ids: Sequence[int], tokenizer: Tokenizer, likeliest: int = 2) -> SampledAnswer:
    pieces = tokenizer.pieces([], ids, skip_special=True)
    tokens = tuple(
        AnswerToken(token, piece, -1.0 - token / 100, tuple((each, -0.5 - each) for each in range(likeliest)))
        for token, piece in zip(ids, pieces, strict=True)
    )
    return SampledAnswer(tokens, FinishReason.LENGTH, None)


def shown(tokenizer: Tokenizer, logprobs: int | None = 1, *, as_ids: bool = False, ids: bool = True) -> Shown:
    return Shown(Spelling(tokenizer, as_ids), logprobs, ids)


def as_json(documents: Iterable[Document]) -> list[Any]:
    return [json.loads(json.dumps(document)) for document in documents]


def test_candidates_of_a_chat_have_the_sampled_token_first(tokenizer: Tokenizer) -> None:
    found = Prompted((1,), (answer([65], tokenizer),))
    [document] = as_json([chat_document(HEADING, found, shown(tokenizer, 2))])
    [token] = document["choices"][0]["logprobs"]["content"]
    text = tokenizer.token_text(65)
    assert token == {
        "token": text,
        "logprob": -1.65,
        "bytes": [*text.encode()],
        "top_logprobs": [
            {"token": text, "logprob": -1.65, "bytes": [*text.encode()]},
            {"token": tokenizer.token_text(0), "logprob": -0.5, "bytes": [*tokenizer.token_text(0).encode()]},
        ],
    }


def test_candidates_of_a_completion_are_one_more_than_asked_for_or_as_many(tokenizer: Tokenizer) -> None:
    found = Prompted((1,), (answer([65, 0], tokenizer),))
    [document] = as_json([completion_document(HEADING, [found], shown(tokenizer, 2, as_ids=True))])
    assert document["choices"][0]["logprobs"] == {
        "text_offset": [0, len("token_id:65")],
        "token_logprobs": [-1.65, -1.0],
        "tokens": ["token_id:65", "token_id:0"],
        "top_logprobs": [
            {"token_id:65": -1.65, "token_id:0": -0.5, "token_id:1": -1.5},
            {"token_id:0": -1.0, "token_id:1": -1.5},
        ],
    }


def test_what_is_not_asked_for_is_not_told(tokenizer: Tokenizer) -> None:
    found = Prompted((1, 2), (answer([65], tokenizer),))
    [document] = as_json([chat_document(HEADING, found, shown(tokenizer, None, ids=False))])
    assert document["choices"][0]["logprobs"] is None
    assert document["choices"][0]["token_ids"] is None
    assert document["prompt_token_ids"] is document["prompt_logprobs"] is None


def test_a_prompt_is_told_by_token_with_the_ranks_that_are_known(tokenizer: Tokenizer) -> None:
    told = (None, PromptToken(-4.0, ((7, -0.5), (9, -1.0))), PromptToken(-0.25, ((8, -0.25),)))
    found = Prompted((1, 5, 8), (answer([65], tokenizer),), told)
    [document] = as_json([completion_document(HEADING, [found], shown(tokenizer))])
    first, second, third = document["choices"][0]["prompt_logprobs"]
    assert first is None
    assert {token: (entry["logprob"], entry["rank"]) for token, entry in second.items()} == {
        "5": (-4.0, None), "7": (-0.5, 1), "9": (-1.0, 2),
    }  # fmt: skip
    assert {token: (entry["logprob"], entry["rank"]) for token, entry in third.items()} == {"8": (-0.25, 1)}


def test_choices_of_several_prompts_are_numbered_through(tokenizer: Tokenizer) -> None:
    prompts = [
        Prompted((1,), (answer([65], tokenizer), answer([66, 67], tokenizer))),
        Prompted((2, 3), (answer([68], tokenizer), answer([69], tokenizer))),
    ]
    [document] = as_json([completion_document(HEADING, prompts, shown(tokenizer))])
    assert [(each["index"], each["token_ids"], each["prompt_token_ids"]) for each in document["choices"]] == [
        (0, [65], [1]), (1, [66, 67], [1]), (2, [68], [2, 3]), (3, [69], [2, 3]),
    ]  # fmt: skip
    # As vLLM counts: a prompt once, whatever its answers.
    assert document["usage"]["prompt_tokens"] == 3
    assert document["usage"]["completion_tokens"] == 5


answers_of_any_length = st.lists(st.lists(st.integers(0, 255), max_size=30), min_size=1, max_size=3)


@given(answers=answers_of_any_length, with_usage=st.booleans(), always=st.booleans())
def test_the_chunks_of_a_chat_are_the_whole(
    tokenizer: Tokenizer, answers: list[list[int]], with_usage: bool, always: bool
) -> None:
    found = Prompted((1, 2), tuple(answer(ids, tokenizer) for ids in answers))
    [whole] = as_json([chat_document(HEADING, found, shown(tokenizer))])
    chunks = as_json(
        chat_chunks(HEADING, found, shown(tokenizer), with_usage=with_usage, always_usage=with_usage and always)
    )
    for choice in whole["choices"]:
        deltas = [each for chunk in chunks for each in chunk["choices"] if each["index"] == choice["index"]]
        first, *rest = deltas
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert "".join(each["delta"]["content"] for each in rest) == choice["message"]["content"]
        assert [token for each in rest for token in each["token_ids"]] == choice["token_ids"]
        told = [token for each in rest for token in each["logprobs"]["content"]]
        assert told == choice["logprobs"]["content"]
        assert [each["finish_reason"] for each in deltas] == [None] * (len(deltas) - 1) + [choice["finish_reason"]]
    last = chunks[-1]
    assert (last["choices"] == []) is with_usage
    if with_usage:
        assert {**last["usage"], "prompt_tokens_details": None, "completion_tokens_details": None} == whole["usage"]
    assert all(("usage" in chunk) is (with_usage and always) for chunk in chunks[:-1])


@given(answers=answers_of_any_length, echo=st.booleans())
def test_the_chunks_of_completions_are_the_whole(tokenizer: Tokenizer, answers: list[list[int]], echo: bool) -> None:
    told = (None, PromptToken(-4.0, ((7, -0.5),)))
    prompts = [
        Prompted((1, 2), tuple(answer(ids, tokenizer) for ids in answers), told, "#$" if echo else None),
        Prompted((3, 4), (answer([65], tokenizer),), told, "%&" if echo else None),
    ]
    [whole] = as_json([completion_document(HEADING, prompts, shown(tokenizer))])
    chunks = as_json(completion_chunks(HEADING, prompts, shown(tokenizer), with_usage=False, always_usage=False))
    for choice in whole["choices"]:
        parts = [each for chunk in chunks for each in chunk["choices"] if each["index"] == choice["index"]]
        assert "".join(each["text"] for each in parts) == choice["text"]
        assert [token for each in parts for token in each["token_ids"]] == choice["token_ids"]
        assert [each["prompt_token_ids"] for each in parts] == [choice["prompt_token_ids"]] + [None] * (
            len(parts) - 1
        )
        for name in choice["logprobs"]:
            assert [value for each in parts for value in each["logprobs"][name]] == choice["logprobs"][name]


@pytest.mark.parametrize("length", [0, 1, 8, 9])
def test_a_stream_has_a_last_chunk_for_each_choice(tokenizer: Tokenizer, length: int) -> None:
    found = Prompted((1,), (answer([65] * length, tokenizer),))
    chunks = as_json(chat_chunks(HEADING, found, shown(tokenizer), with_usage=False, always_usage=False))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks].count("length") == 1
