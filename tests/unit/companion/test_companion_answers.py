"""What clients read: the name they asked for, streamed as it comes, and what there is when a name is not known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claas_vllm.answers import naming
from claas_vllm.asgi import Message

NAME, TARGET = "user123/coder-v1", "user123/coder-v1@7"
JSON, EVENTS = b"application/json", b"text/event-stream; charset=utf-8"


async def answered(
    chunks: Sequence[bytes], kind: bytes = JSON, *, asked: str = NAME, target: str = TARGET, status: int = 200
) -> list[Message]:
    """What the client gets of an answer that vLLM gives in these pieces."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def names() -> list[str]:
        return ["tiny", NAME]

    through = naming(send, asked, target, names)
    length = str(sum(map(len, chunks))).encode()
    headers = [(b"content-type", kind), *([(b"content-length", length)] if kind == JSON else [])]
    await through({"type": "http.response.start", "status": status, "headers": headers})
    for number, chunk in enumerate(chunks):
        more = number + 1 < len(chunks)
        await through({"type": "http.response.body", "body": chunk, "more_body": more})
    return sent


def body_of(sent: Sequence[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


# Texts that a careless replacement would take for the place.
_tricky = st.sampled_from(
    [TARGET, NAME, f'"model":"{TARGET}"', f'{{"model":"{TARGET}"}}', "\\", '\\"', "}", "{", "data: x", "model", "\n"]
)
_texts = st.one_of(st.text(max_size=8), _tricky)
_values = st.recursive(
    st.one_of(st.none(), st.integers(), _texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(_texts, st.just("model")), inner, max_size=3)
    ),
    max_leaves=8,
)
_answers = st.fixed_dictionaries(
    {"id": _texts, "model": st.just(TARGET)},
    optional={"metadata": _values, "choices": _values, "response": st.fixed_dictionaries({"model": st.just(TARGET)})},
)


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)] or [b""]


def renamed(answer: dict[str, object]) -> dict[str, object]:
    expected = {**answer, "model": NAME}
    if "response" in answer:
        expected["response"] = {"model": NAME}
    return expected


@settings(deadline=None)
@given(_answers, st.permutations(["id", "model", "metadata", "choices", "response"]), st.lists(st.integers(0, 999)))
async def test_a_json_answer_says_the_name_asked_for_and_nothing_else_of_it_changes(
    answer: dict[str, object], order: list[str], cuts: list[int]
) -> None:
    answer = {key: answer[key] for key in order if key in answer}
    text = json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    sent = await answered(split(text, cuts))
    body = body_of(sent)
    expected = json.dumps(renamed(answer), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert body == expected
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(body)).encode()


@settings(deadline=None)
@given(st.lists(_answers, min_size=1, max_size=3), st.lists(st.integers(0, 9999)))
async def test_every_event_of_a_stream_says_the_name_asked_for_however_it_is_cut(
    answers: list[dict[str, object]], cuts: list[int]
) -> None:
    def stream(documents: list[dict[str, object]]) -> bytes:
        events = "".join(f"event: chunk\ndata: {json.dumps(document)}\n\n" for document in documents)
        return f"{events}data: [DONE]\n\n".encode()

    # json.dumps puts a space after the colon here, as some of vLLM's answers might.
    sent = await answered(split(stream(answers), cuts), EVENTS)
    assert body_of(sent) == stream([renamed(answer) for answer in answers])


async def test_an_event_goes_out_when_it_has_come_and_not_later() -> None:
    events = [f'data: {{"model":"{TARGET}","choices":[{n}]}}\n\n'.encode() for n in range(3)]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def names() -> list[str]:
        return []

    through = naming(send, NAME, TARGET, names)
    await through({"type": "http.response.start", "status": 200, "headers": [(b"content-type", EVENTS)]})
    assert len(sent) == 1, "the headers are not held back"
    for number, event in enumerate(events):
        await through({"type": "http.response.body", "body": event, "more_body": True})
        assert sent[-1]["body"] == f'data: {{"model":"{NAME}","choices":[{number}]}}\n\n'.encode()


@pytest.mark.parametrize(
    ("kind", "asked"), [(b"audio/wav", NAME), (b"text/plain", NAME), (JSON, TARGET)], ids=["audio", "text", "target"]
)
async def test_what_is_no_answer_by_that_name_passes_byte_for_byte(kind: bytes, asked: str) -> None:
    data = f'{{"model":"{TARGET}"}}'.encode()
    sent = await answered([data[:5], data[5:]], kind, asked=asked)
    assert [message.get("body") for message in sent[1:]] == [data[:5], data[5:]]


@pytest.mark.parametrize(("asked", "target"), [("nope", "nope"), (NAME, TARGET)], ids=["unknown", "lost"])
async def test_the_404_of_a_model_says_what_there_is_and_names_no_version(asked: str, target: str) -> None:
    error = {
        "message": f"The model `{target}` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }
    sent = await answered([json.dumps({"error": error}).encode()], asked=asked, target=target, status=404)
    told = json.loads(body_of(sent))["error"]
    assert told["message"] == f"The model `{asked}` does not exist. This server has: tiny, {NAME}"
    assert told["code"] == 404
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(body_of(sent))).encode()


@pytest.mark.parametrize(
    "body", [b'{"detail":"Not Found"}', b'{"error":"x"}', b"[]", b"{", b'{"error":{"message":7}}']
)
async def test_another_404_passes_as_it_is(body: bytes) -> None:
    assert body_of(await answered([body], status=404)) == body
