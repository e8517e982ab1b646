"""The visible part of an answer: without thinking blocks and channel tags."""

from __future__ import annotations

import re

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_FINAL = re.compile(r"<\|channel\|>final(?:\s.*?)?<\|message\|>(.*?)(?:<\|(?:return|end|start)\|>|\Z)", re.DOTALL)
_CHANNEL = "<|channel|>"


def visible_text(answer: str) -> str:
    """What a user sees of an answer: `<think>` blocks are dropped, and of an answer in channels only the final one is
    kept (nothing, if it was never reached). Surrounding white space goes with what was dropped."""
    if _CHANNEL in answer:
        return "".join(_FINAL.findall(answer)).strip()
    if "<think>" in answer or "</think>" in answer:
        return _THINKING.sub("", answer).rpartition("</think>")[2].strip()
    return answer
