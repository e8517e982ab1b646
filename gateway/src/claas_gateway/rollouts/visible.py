"""The visible part of an answer: without thinking blocks and channel tags."""

from __future__ import annotations

import re
from collections.abc import Iterator

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_CHANNEL = "<|channel|>"
_FINAL = "<|channel|>final"
_MESSAGE = "<|message|>"
_END = re.compile(r"<\|(?:return|end|start)\|>|\Z")


def visible_text(answer: str) -> str:
    """What a user sees of an answer: `<think>` blocks are dropped, and of an answer in channels only the final one is
    kept (nothing, if it was never reached). Surrounding white space goes with what was dropped."""
    if _CHANNEL in answer:
        return "".join(_final_messages(answer)).strip()
    if "<think>" in answer or "</think>" in answer:
        return _THINKING.sub("", answer).rpartition("</think>")[2].strip()
    return answer


def _final_messages(answer: str) -> Iterator[str]:
    """The messages of final channels. Takes time in proportion to the text, which clients may choose: no one pattern
    for all of it does."""
    at, message = answer.find(_FINAL), -1
    while at >= 0:
        at += len(_FINAL)
        # The channel's name, optionally white space and more, and then its message.
        if message < at and (message := answer.find(_MESSAGE, at)) < 0:
            return
        if message == at or answer[at].isspace():
            begin = message + len(_MESSAGE)
            end = _END.search(answer, begin)
            assert end is not None
            yield answer[begin : end.start()]
            at = end.end()
        at = answer.find(_FINAL, at)
