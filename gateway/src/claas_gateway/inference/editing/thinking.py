"""Takes thinking out of an answer while it is streamed: what remains is `rollouts.visible.visible_text`, up to white
space at the ends.

One difference can't be helped: if a think block has an end and no beginning, as where the chat template opened it,
what came before the end has been sent already; it stays, tag and all, and hashes as feedback does.
"""

from __future__ import annotations

import re
from enum import Enum, auto

_THINK = "<think>"
_THOUGHT = "</think>"
_CHANNEL = "<|channel|>"
_FINAL = "<|channel|>final"
_MESSAGE = "<|message|>"
_ENDS = ("<|return|>", "<|end|>", "<|start|>")
_END = re.compile("|".join(map(re.escape, _ENDS)))


class _Mode(Enum):
    PLAIN = auto()
    """What comes is visible."""
    THINKING = auto()
    """Inside a think block."""
    HIDDEN_CHANNEL = auto()
    """The answer is in channels, and this is not the final one."""
    FINAL_CHANNEL = auto()


class ThinkingFilter:
    """Takes an answer's text in pieces, however it is cut, and gives what is visible of it."""

    def __init__(self) -> None:
        self._mode = _Mode.PLAIN
        self._held = ""
        self._dropped = False
        """Whether white space is dropped until something visible comes."""
        self._shown = False

    @property
    def idle(self) -> bool:
        """Whether a piece without `<` would go through as it is."""
        return self._mode is _Mode.PLAIN and not self._held and not self._dropped

    def feed(self, text: str) -> str:
        """The visible text that is certain by now."""
        self._held += text
        shown = ""
        while True:
            step = {
                _Mode.PLAIN: self._plain,
                _Mode.THINKING: self._thinking,
                _Mode.HIDDEN_CHANNEL: self._hidden,
                _Mode.FINAL_CHANNEL: self._final,
            }[self._mode]
            before = self._mode
            shown += self._trimmed(step())
            if self._mode is before:
                return shown
            if before is _Mode.PLAIN and (self._mode is _Mode.HIDDEN_CHANNEL or not self._shown):
                self._dropped = True

    def end(self) -> str:
        """The visible text that waited for more."""
        rest, self._held = self._held, ""
        return self._trimmed(rest) if self._mode in (_Mode.PLAIN, _Mode.FINAL_CHANNEL) else ""

    def _plain(self) -> str:
        found = [(at, mark) for mark in (_THINK, _CHANNEL) if (at := self._held.find(mark)) >= 0]
        if not found:
            return self._all_but_a_beginning_of(_THINK, _CHANNEL)
        at, mark = min(found)
        shown = self._held[:at]
        if mark == _THINK:
            self._mode, self._held = _Mode.THINKING, self._held[at + len(mark) :]
        else:
            self._mode, self._held = _Mode.HIDDEN_CHANNEL, self._held[at:]
        return shown

    def _thinking(self) -> str:
        before, found, after = self._held.partition(_THOUGHT)
        if found:
            self._mode, self._held = _Mode.PLAIN, after
        else:
            self._held = before[len(before) - len(_THOUGHT) + 1 :] if len(before) >= len(_THOUGHT) else before
        return ""

    def _hidden(self) -> str:
        """Look for the final channel: its name, optionally white space and more, and then its message."""
        at = self._held.find(_FINAL)
        while at >= 0:
            rest = self._held[at + len(_FINAL) :]
            if rest.startswith(_MESSAGE):
                self._mode, self._held = _Mode.FINAL_CHANNEL, rest[len(_MESSAGE) :]
                return ""
            if rest[:1].isspace():
                _, found, after = rest.partition(_MESSAGE)
                if found:
                    self._mode, self._held = _Mode.FINAL_CHANNEL, after
                else:
                    self._held = self._held[at:]
                return ""
            if _MESSAGE.startswith(rest):
                self._held = self._held[at:]
                return ""
            at = self._held.find(_FINAL, at + 1)
        self._held = self._held[max(0, len(self._held) - len(_FINAL) + 1) :]
        return ""

    def _final(self) -> str:
        found = _END.search(self._held)
        if found is None:
            return self._all_but_a_beginning_of(*_ENDS)
        shown = self._held[: found.start()]
        self._mode, self._held = _Mode.HIDDEN_CHANNEL, self._held[found.end() :]
        return shown

    def _all_but_a_beginning_of(self, *marks: str) -> str:
        """Show what is held but for an end that may become a mark."""
        keep = max(
            (size for mark in marks for size in range(1, len(mark)) if self._held.endswith(mark[:size])), default=0
        )
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def _trimmed(self, text: str) -> str:
        if self._dropped:
            text = text.lstrip()
        if text:
            self._dropped = False
            self._shown = True
        return text
