"""Finds the user's last message in a prompt rendered with a chat template.

The way a template opens and closes a user's turn is learned from the template: conversations of markers are rendered,
and the texts around the markers are compared. A message is matched as a turn (opening, text, closing), never as a
bare substring, which may occur in a tool's result or inside a word. Needs neither PyTorch nor a tokenizer.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Chat = Sequence[Mapping[str, object]]
Render = Callable[[Chat, bool], str | None]
"""Renders messages with the chat template; with True, up to the beginning of the answer. None if the template
refuses."""
_Form = Literal["NFC", "NFKC"]
_BLANK_LINE = "\n\n"
_FORMS: tuple[_Form, ...] = ("NFC", "NFKC")
_SYSTEM, _FIRST, _ANSWER, _LAST, _RESULT = (
    f"claas{name}marker" for name in ("system", "first", "answer", "last", "result")
)
_SYSTEM_TURN = {"role": "system", "content": _SYSTEM}
_FIRST_TURN = {"role": "user", "content": _FIRST}
_LATER_TURNS = ({"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _LAST})
_TOOL_TURNS = (
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "marker001", "type": "function", "function": {"name": "marker", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "marker001", "name": "marker", "content": _RESULT},
)


@dataclass(frozen=True)
class UserTurns:
    """How a chat template renders a user's turn."""

    opening: str
    closing: str
    before_message: tuple[str, ...]
    """Separator between the message and a text that the template puts before it into the same turn, such as the
    system prompt or tool definitions."""
    tool_openings: tuple[str, ...]
    """Beginning of a tool's result, if the template renders it as a user's turn."""
    lead: str
    """Text before the message in a conversation of one message."""
    tail: str
    """Text after it, up to the beginning of the answer."""
    turns_text: str
    """Rendered turns of both sides, which contain the control tokens between turns."""

    @classmethod
    def of(cls, render: Render, control_texts: Callable[[str], Iterable[str]] = lambda text: ()) -> UserTurns | None:
        """Learns the turns of a template; None if it does not render the user's message exactly once. `control_texts`
        returns the control tokens spelled in a text; an opening begins with a whole one.
        """
        alone = _around(render((_FIRST_TURN,), True))
        if len(alone) != 1:
            return None
        (lead, tail) = alone[0][1:]
        longer = render((_FIRST_TURN, *_LATER_TURNS), True)
        around = [*alone, *_around(longer)]
        ended = _around(render((_FIRST_TURN,), False))
        closings = [after for _, _, after in (*around, *ended) if after.strip()]
        # Some templates add a note to the last message only.
        last = [after for _, _, after in (*alone, *_around(longer)[-1:], *ended) if after.strip()]
        opening = _common_suffix([before for _, before, _ in around])
        with_system = [
            each
            for chat in ((_SYSTEM_TURN, _FIRST_TURN), (_SYSTEM_TURN, _FIRST_TURN, *_LATER_TURNS))
            for each in _around(render(chat, True))
        ]
        folded = set()
        for previous, before, _ in with_system:
            shared = _common_suffix([opening, before])
            if shared.strip():
                opening = shared
            elif previous == _SYSTEM:
                folded.add(before)
        opening = _from_whole_token(lead, opening, control_texts(lead))
        return cls(
            opening=opening,
            closing=_common_prefix(closings) or _common_prefix(last),
            before_message=tuple(sorted(folded | {_BLANK_LINE})),
            tool_openings=_tool_openings(render, opening),
            lead=lead,
            tail=tail,
            turns_text=render((_FIRST_TURN, *_LATER_TURNS), False) or longer or lead + tail,
        )

    def contents(self, render: Render, message: str) -> tuple[str, ...]:
        """The texts as which a message may appear: as the template renders it, as given, trimmed on both sides or, if
        the same turn has text before it, at the end only."""
        shown = render(({"role": "user", "content": message},), True) or ""
        given = [message, message.strip(), message.rstrip()]
        if shown.startswith(self.lead) and shown.endswith(self.tail):
            given.insert(0, shown[len(self.lead) : len(shown) - len(self.tail)])
        return tuple(dict.fromkeys(text for text in given if text.strip()))

    def end_of_message(self, prompt: str, contents: Iterable[str]) -> int | None:
        """End of the user's last message in `prompt`; None if the last user turn is another message. Prompt and
        message may have different Unicode forms, because tokenizers normalise text.
        """
        if not self.opening.strip() or not self.closing.strip():
            return None
        variants = tuple(contents)
        found = self._end(prompt, variants, None)
        for form in _FORMS:
            if found is None:
                end = self._end(unicodedata.normalize(form, prompt), variants, form)
                found = None if end is None else _position(prompt, form, end)
        return found

    def _end(self, prompt: str, contents: Sequence[str], form: _Form | None) -> int | None:
        def normal(text: str) -> str:
            return text if form is None else unicodedata.normalize(form, text)

        opening, closing = normal(self.opening), normal(self.closing)
        ends = [self._turn_end(prompt, normal(text), opening, closing) for text in contents]
        ends += [
            _folded_end(prompt, normal(between + text), opening, closing)
            for text in contents
            for between in self.before_message
        ]
        end = max(ends, default=-1)
        return end if end >= 0 and self._is_last(prompt, end, opening, normal) else None

    @staticmethod
    def _turn_end(prompt: str, content: str, opening: str, closing: str) -> int:
        at = prompt.rfind(opening + content + closing)
        return at + len(opening) + len(content) if at >= 0 else -1

    def _is_last(self, prompt: str, end: int, opening: str, normal: Callable[[str], str]) -> bool:
        """Whether all later user turns show tool results."""
        at = prompt.find(opening, end)
        while at >= 0:
            at += len(opening)
            if not prompt.startswith(tuple(normal(each) for each in self.tool_openings), at):
                return False
            at = prompt.find(opening, at)
        return True


def _folded_end(prompt: str, content: str, opening: str, closing: str) -> int:
    """End of a message that follows other text within one turn; -1 if there is none."""
    at = prompt.rfind(content + closing)
    start = prompt.rfind(opening, 0, max(at, 0))
    if at < 0 or start < 0:
        return -1
    before = prompt[start + len(opening) : at]
    return at + len(content) if before.strip() and closing not in before else -1


def _around(text: str | None) -> list[tuple[str, str, str]]:
    """For each user marker: the marker before it, the text between the two, and the text up to the next marker."""
    if text is None:
        return []
    markers = (_SYSTEM, _FIRST, _ANSWER, _LAST, _RESULT)
    places = sorted((text.find(marker), marker) for marker in markers if text.count(marker) == 1)
    found = []
    for number, (start, marker) in enumerate(places):
        previous, begin = ("", 0) if number == 0 else (places[number - 1][1], _end_of(places[number - 1]))
        end = places[number + 1][0] if number + 1 < len(places) else len(text)
        if marker in (_FIRST, _LAST):
            found.append((previous, text[begin:start], text[start + len(marker) : end]))
    return found


def _end_of(place: tuple[int, str]) -> int:
    return place[0] + len(place[1])


def _from_whole_token(lead: str, opening: str, tokens: Iterable[str]) -> str:
    """`opening`, which is the end of `lead`, without the rest of a token that begins before it."""
    start = len(lead) - len(opening)
    for token in tokens:
        at = lead.find(token, max(0, start - len(token) + 1))
        if 0 <= at < start:
            start = at + len(token)
    return lead[start:]


def _tool_openings(render: Render, opening: str) -> tuple[str, ...]:
    text = render((_FIRST_TURN, *_TOOL_TURNS), True) or ""
    before, found, _ = text.partition(_RESULT)
    _, opened, begun = before.partition(_FIRST)[2].rpartition(opening) if opening else ("", "", "")
    return (begun,) if found and opened and begun.strip() else ()


def _common_prefix(texts: Sequence[str]) -> str:
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def _common_suffix(texts: Sequence[str]) -> str:
    return _common_prefix([text[::-1] for text in texts])[::-1]


def _position(text: str, form: _Form, target: int) -> int | None:
    """Index in `text` that corresponds to `target` in its normal form; None if that is inside a character."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high) // 2
        if len(unicodedata.normalize(form, text[:middle])) < target:
            low = middle + 1
        else:
            high = middle
    return low if len(unicodedata.normalize(form, text[:low])) == target else None
