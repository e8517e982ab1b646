"""The visible part of an answer, and its hash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_gateway.rollouts.hashing import answer_hash
from claas_gateway.rollouts.visible import visible_text

CASES = [
    ("Hello", "Hello"),
    ("  Hello \n", "  Hello \n"),
    ("<think>secret</think>\n\nHello", "Hello"),
    ("<think>a</think>x<think>b</think>y", "xy"),
    ("<think>never ended", ""),
    ("begun in the prompt</think>\nHello", "Hello"),
    (
        "<|channel|>analysis<|message|>secret<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>",
        "Hello",
    ),
    ("<|channel|>analysis<|message|>only thoughts", ""),
    ("<|channel|>final <|constrain|>json<|message|>{}", "{}"),
    ("a <b> c", "a <b> c"),
]


@pytest.mark.parametrize(("answer", "visible"), CASES)
def test_thinking_and_channels_are_not_visible(answer: str, visible: str) -> None:
    assert visible_text(answer) == visible


@given(st.text(), st.text(), st.sampled_from([" ", "\n", "\t ", " \n\n "]))
def test_white_space_does_not_change_the_hash(before: str, after: str, between: str) -> None:
    assert answer_hash(f"{before} {after}") == answer_hash(f" {before}{between}{after}\n")


@given(st.text(st.characters(exclude_characters="<"), min_size=1))
def test_an_answer_has_the_hash_of_its_visible_part(text: str) -> None:
    assert answer_hash(f"<think>secret</think>\n\n{text}") == answer_hash(text)
