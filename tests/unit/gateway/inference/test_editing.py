"""That an answer's bytes are cut and edited the same however they arrive, and otherwise go through untouched."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from claas_gateway.inference.editing.editor import Editor
from claas_gateway.inference.editing.events import EventCutter
from claas_gateway.inference.editing.thinking import ThinkingFilter
from claas_gateway.rollouts.visible import visible_text

RECORD = b'{"v":1,"version":"coder@7","calls":[]}'


def event(content: str, index: int = 0, finish_reason: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish_reason}
    document = {"id": "1", "model": "coder", "choices": [choice]}
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@st.composite
def cut(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """Bytes, and the same cut into pieces."""
    data = draw(whole)
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return data, [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


TEXTS = st.text(st.sampled_from('ab \n"\\<>|/é{}[]:') | st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["data: [DONE]", ": claas-record {}", "\n\n", "\n\ndata: [DONE]\n\n"]
)
STREAMS = st.lists(TEXTS, max_size=6).map(lambda texts: b"".join(map(event, texts)))


@given(cut(STREAMS.map(lambda events: events + b"data: [DONE]\n\n: claas-record " + RECORD + b"\n\n")))
def test_the_record_is_cut_off_exactly_however_the_bytes_arrive(stream: tuple[bytes, list[bytes]]) -> None:
    whole, pieces = stream
    cutter = EventCutter()
    passed = [cutter.feed(piece) for piece in pieces]
    assert b"".join(passed) + cutter.last + b": claas-record " + RECORD + b"\n\n" == whole
    assert all(each.endswith(b"\n\n") for each in passed if each), "whole events alone"
    assert cutter.last == b"data: [DONE]\n\n"
    assert cutter.record == RECORD


@given(cut(STREAMS))
def test_a_stream_that_is_cut_off_has_no_end_and_no_record(stream: tuple[bytes, list[bytes]]) -> None:
    whole, pieces = stream
    cutter = EventCutter()
    assert b"".join(map(cutter.feed, pieces)) == whole
    assert not cutter.ended
    assert cutter.record is None


@given(cut(STREAMS.map(lambda events: events + b": claas-record " + RECORD + b"\n\n")))
def test_a_record_behind_a_stream_without_an_end_reaches_no_client(stream: tuple[bytes, list[bytes]]) -> None:
    whole, pieces = stream
    cutter = EventCutter()
    assert b"".join(map(cutter.feed, pieces)) == whole.removesuffix(b": claas-record " + RECORD + b"\n\n")
    assert not cutter.ended


@pytest.mark.parametrize("tail", [b"", b": claas-record {", b": claas-record {}\n", b": another comment\n\n"])
def test_half_a_record_is_none(tail: bytes) -> None:
    cutter = EventCutter()
    assert cutter.feed(b"data: [DONE]\n\n" + tail) == b""
    assert cutter.record is None


MARKS = [
    "<think>",
    "</think>",
    "<|channel|>",
    "<|channel|>final",
    "<|message|>",
    "<|end|>",
    "<|return|>",
    "<|start|>",
]
MARKED = st.lists(st.sampled_from([*MARKS, "<", "</th", "<|", "a", " ", "b c"]), max_size=10).map("".join)


def filtered(pieces: Iterator[str] | list[str]) -> str:
    thinking = ThinkingFilter()
    return "".join([*map(thinking.feed, pieces), thinking.end()])


@given(MARKED, st.lists(st.integers(0, 80), max_size=8))
def test_what_is_visible_does_not_depend_on_where_a_text_is_cut(text: str, places: list[int]) -> None:
    ends = sorted(min(place, len(text)) for place in places)
    pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    assert filtered(pieces) == filtered([text])


@given(MARKED)
def test_a_stream_shows_what_an_answer_at_once_shows(text: str) -> None:
    # What can't be told in time: that a thought ends which never began, or that the answer is in channels.
    assume("</think>" not in text.replace("<think>", "", 1) if text.startswith("<think>") else "</think>" not in text)
    assume("<|channel|>" not in text or text.startswith("<|channel|>"))
    assert " ".join(filtered(list(text)).split()) == " ".join(visible_text(text).split())


@pytest.mark.parametrize(
    ("answer", "visible"),
    [
        ("<think>secret</think>\n\nHello", "Hello"),
        ("<think>one</think>a<think>two</think>b", "ab"),
        ("<think>never ends", ""),
        (
            "<|channel|>analysis<|message|>secret<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>",
            "Hello",
        ),
        ("<|channel|>analysis<|message|>only thoughts", ""),
        ("a < b and <b>c</b>", "a < b and <b>c</b>"),
        ("x <think", "x <think"),
    ],
)
def test_thinking_is_taken_out_of_streams_and_of_answers_at_once(answer: str, visible: str) -> None:
    assert filtered(list(answer)) == visible
    editor = Editor("coder", "coder", None, hide_thinking=True)
    body = json.dumps({"choices": [{"index": 0, "message": {"content": answer}}]}).encode()
    assert json.loads(editor.document(body))["choices"][0]["message"]["content"] == visible
    events = [event(character) for character in answer[:-1]] + [event(answer[-1], finish_reason="stop")]
    shown = [json.loads(each[6:]) for each in b"".join(map(editor.events, events)).split(b"\n\n") if each]
    assert "".join(each["choices"][0]["delta"]["content"] for each in shown) == visible


def test_each_answer_of_a_stream_has_its_own_thoughts() -> None:
    editor = Editor("coder", "coder", None, hide_thinking=True)
    stream = event("<think>", 0) + event("shown", 1) + event("hidden", 0) + event("</think>also", 0)
    shown = [json.loads(each[6:])["choices"][0] for each in editor.events(stream).split(b"\n\n") if each]
    assert [(each["index"], each["delta"]["content"]) for each in shown] == [
        (0, ""), (1, "shown"), (0, ""), (0, "also"),
    ]  # fmt: skip


@given(STREAMS)
def test_nothing_is_edited_where_nothing_needs_it(stream: bytes) -> None:
    assert Editor("coder", "coder", None, hide_thinking=False).events(stream) == stream


def test_the_model_is_named_as_asked_and_a_text_that_names_it_is_kept() -> None:
    editor = Editor("coder", 'team/"coder"', None, hide_thinking=True)
    stream = event('"model":"coder"') + event("b")
    shown = [json.loads(each[6:]) for each in editor.events(stream).split(b"\n\n") if each]
    assert [each["model"] for each in shown] == ['team/"coder"'] * 2
    assert shown[0]["choices"][0]["delta"]["content"] == '"model":"coder"'
