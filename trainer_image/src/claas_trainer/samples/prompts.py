"""The three token sequences of a sample: student's prompt, teacher's prompt, response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from claas_crds.v1alpha1.training import DistillBatchItem
from claas_trainer.samples.chat_template import ChatRenderer, ChatTemplateError, PromptOrigin
from claas_trainer.samples.hindsight import SEPARATOR, Message, Role, as_chat, conversation
from claas_trainer.samples.hints import hint
from claas_trainer.samples.prompt_turns import Chat, Render, UserTurns
from claas_trainer.samples.user_text import Piece

if TYPE_CHECKING:
    from claas_trainer.samples.tokens import ChatTokenizer

_QUESTION, _ANSWER = "question-placeholder", "answer-placeholder"
_HINT = "hindsight-placeholder"
_LETTER = "a"
_LONGEST_LETTER = 4
"""Largest number of UTF-8 bytes of a character."""


_HIDDEN_MESSAGE = "it does not render the user's message, so there is no place for hindsight"


class TeacherPrompt(StrEnum):
    """Origin of the teacher's prompt."""

    INSERTED = "inserted"
    """The recorded prompt with the hindsight after the user's last message."""
    MADE = "made"
    """No prompt was recorded: the student's conversation with the hindsight."""
    REBUILT = "rebuilt"
    """A conversation rebuilt from the sample's texts, because the recorded prompt does not end with the user's
    message."""


@dataclass(frozen=True)
class _Way:
    """A renderer, and how its template renders a user's turn. `render` returns None if the template refuses."""

    renderer: ChatRenderer
    render: Render
    turns: UserTurns


class Prompts:
    """Makes the token sequences with one tokenizer and one template.

    Raises:
        ChatTemplateError: the template can't render a user's message.
    """

    def __init__(self, tokenizer: ChatTokenizer, renderer: ChatRenderer) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer
        # Raises here if the template can't render anything.
        renderer.render(as_chat(conversation(_QUESTION)), answer_next=True)
        way = self._way(renderer)
        if way is None:
            raise ChatTemplateError(_HIDDEN_MESSAGE, by_itself=True)
        self._first_way = way
        # In a response, thinking tokens are tokens that the model sampled, although the template knows them too.
        never_text = tokenizer.special_ids | tokenizer.end_of_turn_ids
        self._turn_ids = never_text | self._ids_in(way.turns.turns_text)
        self._control_ids = self._turn_ids | self._ids_in(renderer.source)
        self._ending = self._turn_ending()

    @property
    def origin(self) -> PromptOrigin:
        """Origin of prompts that were not recorded."""
        return self._renderer.origin

    def student(self, item: DistillBatchItem) -> list[int]:
        """The student's prompt. Raises ChatTemplateError."""
        if item.prompt_token_ids:
            return item.prompt_token_ids
        return self._tokenizer.encode(item.prompt or self._renderer.render(as_chat(_chat(item)), answer_next=True))

    def teacher(self, item: DistillBatchItem) -> tuple[list[int], TeacherPrompt]:
        """The teacher's prompt: the same with the hindsight. Raises ChatTemplateError and ControlTextError."""
        recorded = self._tokenizer.decode(item.prompt_token_ids) if item.prompt_token_ids else item.prompt
        if not recorded:
            return self._hinted(item, self._renderer), TeacherPrompt.MADE
        end = self._end_of_message(item, recorded)
        if end is None:
            return self._hinted(item, self._renderer_of(recorded)), TeacherPrompt.REBUILT
        return self._inserted(item, recorded, end), TeacherPrompt.INSERTED

    def response(self, text: str) -> list[int]:
        """The response as the model would have sampled it, with one end-of-turn token. Raises ControlTextError."""
        ending = self._ending
        for token in sorted(self._tokenizer.end_of_turn_ids):
            spelled = self._tokenizer.decode([token])
            if spelled and text.rstrip().endswith(spelled):
                text, ending = text.rstrip().removesuffix(spelled), (token,)
                break
        return [*self._tokenizer.encode_pieces([Piece(text, from_user=True)], self._turn_ids), *ending]

    def _end_of_message(self, item: DistillBatchItem, recorded: str) -> int | None:
        """End of the user's last message in a recorded prompt; None if it is not there. A request may have switched
        thinking on or off, and some templates write that into the user's turn.
        """
        for way in self._ways:
            contents = way.turns.contents(way.render, item.user_prompt)
            end = way.turns.end_of_message(recorded, contents)
            if end is not None:
                return end
        return None

    def _inserted(self, item: DistillBatchItem, recorded: str, end: int) -> list[int]:
        inserted = Piece(SEPARATOR + hint(item.feedback, item.correction), from_user=True)
        if item.prompt_token_ids and self._tokenizer.encode(recorded) != item.prompt_token_ids:
            # The recorded tokens differ from the tokenizer's choice; keep them unchanged.
            place = self._token_at(item.prompt_token_ids, recorded[:end])
            if place is not None:
                block = self._inside_text(inserted)
                return [*item.prompt_token_ids[:place], *block, *item.prompt_token_ids[place:]]
        pieces = [Piece(recorded[:end]), inserted, Piece(recorded[end:])]
        return self._tokenizer.encode_pieces(pieces, self._control_ids)

    def _inside_text(self, piece: Piece) -> list[int]:
        """Tokens of a piece that follows other text. Some tokenizers mark the beginning of a text."""
        before = self._tokenizer.encode(_LETTER)
        ids = self._tokenizer.encode_pieces([Piece(_LETTER), piece], self._control_ids)
        if ids[: len(before)] == before:
            return ids[len(before) :]
        return self._tokenizer.encode_pieces([piece], self._control_ids)

    def _token_at(self, ids: Sequence[int], text: str) -> int | None:
        """Number of tokens that make up `text`; None if it ends inside a token."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if self._letters(ids, middle) < len(text):
                low = middle + 1
            else:
                high = middle
        # A character may be several tokens, the first of which decode to a character too.
        places = range(low, min(low + _LONGEST_LETTER, len(ids) + 1))
        return next((place for place in places if self._tokenizer.decode(ids[:place]) == text), None)

    def _letters(self, ids: Sequence[int], place: int) -> int:
        """Length of the text of this many tokens, up to the last whole character. The first bytes of a character may
        change the decoding of the characters before it."""
        for end in range(place, max(place - _LONGEST_LETTER, -1), -1):
            shown = self._tokenizer.decode(ids[:end])
            if not shown.endswith("\ufffd"):
                return len(shown)
        return len(self._tokenizer.decode(ids[:place]))

    def _hinted(self, item: DistillBatchItem, renderer: ChatRenderer) -> list[int]:
        """The sample's conversation with the hindsight at the end of the user's last message."""
        *earlier, last = _chat(item)
        mark = _HINT
        while any(mark in message.content for message in (*earlier, last)):
            mark += "x"
        marked = Message(Role.USER, f"{last.content}{SEPARATOR}{mark}")
        before, found, after = renderer.render(as_chat((*earlier, marked)), answer_next=True).partition(mark)
        if not found:
            raise ChatTemplateError(_HIDDEN_MESSAGE, by_itself=True)
        shown = Piece(hint(item.feedback, item.correction), from_user=True)
        pieces = [Piece(before), shown, Piece(after)]
        return self._tokenizer.encode_pieces(pieces, self._control_ids)

    def _renderer_of(self, recorded: str) -> ChatRenderer:
        """The renderer whose prompts end like the recorded one."""
        fitting = [way for way in self._ways if recorded.endswith(way.turns.tail)] or [self._first_way]
        return max(fitting, key=lambda way: len(way.turns.tail)).renderer

    @cached_property
    def _ways(self) -> tuple[_Way, ...]:
        switched = (self._way(self._renderer.with_thinking(thinking)) for thinking in (False, True))
        ways = [self._first_way, *(way for way in switched if way is not None)]
        # Some tokenizers change white space, which shows in recorded tokens.
        read_back = (self._way(way.renderer, self._read_back) for way in ways if self._changes(way.turns.turns_text))
        return (*ways, *(way for way in read_back if way is not None))

    def _way(self, renderer: ChatRenderer, shown: Callable[[str], str] = lambda text: text) -> _Way | None:
        def render(chat: Chat, answer_next: bool) -> str | None:
            try:
                return shown(renderer.render(chat, answer_next=answer_next))
            except ChatTemplateError:
                return None

        turns = UserTurns.of(render, self._control_texts)
        return None if turns is None else _Way(renderer, render, turns)

    def _read_back(self, text: str) -> str:
        return self._tokenizer.decode(self._tokenizer.encode(text))

    def _changes(self, text: str) -> bool:
        return self._read_back(text) != text

    def _control_texts(self, text: str) -> list[str]:
        """The added tokens in a text, except those of white space, which are ordinary text."""
        return [token for token in self._tokenizer.added_tokens if token.strip() and token in text]

    def _ids_in(self, text: str) -> frozenset[int]:
        return frozenset(self._tokenizer.added_tokens[token] for token in self._control_texts(text))

    def _turn_ending(self) -> tuple[int, ...]:
        """The token that ends an answer in the template; empty if there is none."""
        chat = as_chat((Message(Role.USER, _QUESTION), Message(Role.ASSISTANT, _ANSWER)))
        _, found, closing = (self._first_way.render(chat, False) or "").rpartition(_ANSWER)
        after = self._tokenizer.encode(closing.lstrip()) if found else []
        if after and after[0] in self._tokenizer.end_of_turn_ids:
            return (after[0],)
        # The template writes no ending: use the model's end of text.
        return tuple(sorted(self._tokenizer.end_of_turn_ids)[:1])


def _chat(item: DistillBatchItem) -> tuple[Message, ...]:
    earlier = [Message(Role(turn.role.value), turn.content) for turn in item.messages]
    return conversation(item.user_prompt, item.system_prompt or None, earlier)
