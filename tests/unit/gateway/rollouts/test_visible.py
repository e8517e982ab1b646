"""The visible part of an answer, and its hash."""

from __future__ import annotations

import re
import time

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


_FINAL = re.compile(
    r"<\|channel\|>final(?:\s.*?)?<\|message\|>(.*?)(?:<\|(?:return|end|start)\|>|\Z)",
    re.DOTALL,
)
_PARTS = ["<|channel|>", "<|channel|>final", "final", " ", "\n", "x", "<|message|>", "<|end|>", "<|return|>", "<"]


@given(st.lists(st.sampled_from(_PARTS), max_size=14).map("".join))
def test_final_channels_are_what_one_pattern_finds(text: str) -> None:
    answer = f"<|channel|>{text}"
    assert visible_text(answer) == "".join(_FINAL.findall(answer)).strip()


@pytest.mark.parametrize(
    "answer",
    [
        "<|channel|>final " * 20_000,
        "<|channel|>finalx" * 20_000 + "<|message|>",
        "<|channel|>final<|message|>" * 20_000,
        "<think>" * 50_000,
    ],
)
def test_no_answer_that_a_client_makes_up_takes_long(answer: str) -> None:
    began = time.process_time()
    visible_text(answer)
    assert time.process_time() - began < 0.5
