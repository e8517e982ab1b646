"""Renders a conversation to a prompt, with the model's chat template or the server's."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from jinja2 import TemplateSyntaxError
from pydantic import JsonValue

from claas_trainer.errors import TrainerError
from claas_trainer.samples.prompt_turns import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THINKING = "enable_thinking"
_MARKER = "marker"


class PromptOrigin(StrEnum):
    """Origin of a sample's prompt."""

    RECORDED = "recorded"
    """It was recorded with the answer."""
    SERVER = "server"
    """Rendered with the server's template and arguments, or by the server itself."""
    MODEL = "model"
    """Rendered with the model's own template, because no server could be asked."""


class ChatTemplateError(Exception):
    """A template can't render a conversation. The message says why, without quoting the conversation. `by_itself`:
    the template can't render any conversation.
    """

    def __init__(self, message: str, *, by_itself: bool) -> None:
        super().__init__(message)
        self.message = message
        self.by_itself = by_itself


class ChatRenderer(Protocol):
    """Renders conversations to prompts."""

    @property
    def origin(self) -> PromptOrigin:
        """Origin of the prompts."""

    @property
    def source(self) -> str:
        """The template's text, from which the tokens that it writes are known; empty if unknown."""

    def render(self, chat: Chat, *, answer_next: bool) -> str:
        """The prompt; with `answer_next`, up to the beginning of the answer. Raises ChatTemplateError."""

    def with_thinking(self, thinking: bool) -> ChatRenderer:
        """The same renderer with the template argument `enable_thinking` set, as a request may set it."""


@dataclass(frozen=True)
class TemplateRenderer:
    """A template rendered by transformers.

    `template`: its text, or the name of one of the tokenizer's templates; None: the tokenizer's default. `arguments`
    are passed to it, like vLLM's --default-chat-template-kwargs."""

    tokenizer: PreTrainedTokenizerBase
    origin: PromptOrigin
    template: str | None = None
    arguments: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def source(self) -> str:
        return str(self.tokenizer.get_chat_template(self.template))

    def render(self, chat: Chat, *, answer_next: bool) -> str:
        return rendered(self._apply, chat, answer_next)

    def with_thinking(self, thinking: bool) -> TemplateRenderer:
        return replace(self, arguments={**self.arguments, _THINKING: thinking})

    def _apply(self, chat: Chat, answer_next: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            [dict(turn) for turn in chat],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=answer_next,
            **self.arguments,
        )
        return str(text)


@dataclass(frozen=True)
class ServerRenderer:
    """Asks the server for token ids; for servers whose template is not known."""

    ask: Callable[[Chat, bool, Mapping[str, JsonValue]], Sequence[int]]
    """May block; called from a thread of its own."""
    decode: Callable[[Sequence[int]], str]
    arguments: Mapping[str, JsonValue] = field(default_factory=dict)
    origin: PromptOrigin = PromptOrigin.SERVER
    source: str = ""

    def render(self, chat: Chat, *, answer_next: bool) -> str:
        return rendered(lambda turns, ahead: self.decode(self.ask(turns, ahead, self.arguments)), chat, answer_next)

    def with_thinking(self, thinking: bool) -> ServerRenderer:
        return replace(self, arguments={**self.arguments, _THINKING: thinking})


@dataclass(frozen=True)
class ServerChat:
    """How the server renders prompts: the template and arguments that it was started with. If they are unknown, or
    transformers can't render them, the server can be asked for tokens."""

    template: str | None = None
    """None: the tokenizer's default."""
    arguments: Mapping[str, JsonValue] = field(default_factory=dict)
    told: bool = True
    """Whether template and arguments are known."""
    ask: Callable[[Chat, bool, Mapping[str, JsonValue]], Sequence[int]] | None = None


def rendered(apply: Callable[[Chat, bool], str], chat: Chat, answer_next: bool) -> str:
    """Calls `apply`; turns any exception into a ChatTemplateError that does not quote the conversation."""
    try:
        return apply(chat, answer_next)
    except TrainerError:
        raise
    except Exception as error:  # noqa: BLE001 - a template is a user's program and may raise anything
        failure = error
    # A template's error may quote its input, so only errors from conversations of markers are reported.
    plain = _why(apply, ({"role": "user", "content": _MARKER},))
    if plain is not None:
        raise ChatTemplateError(plain, by_itself=True) from None
    roles = ", ".join(str(turn["role"]) for turn in chat)
    why = _why(apply, [{**turn, "content": _MARKER} for turn in chat]) or _place(failure)
    raise ChatTemplateError(f"the chat template refuses a conversation of {roles}: {why}", by_itself=False) from None


def _why(apply: Callable[[Chat, bool], str], chat: Sequence[Mapping[str, object]]) -> str | None:
    """Why a conversation of markers can't be rendered; None if it can."""
    try:
        apply(chat, True)
    except Exception as error:  # noqa: BLE001 - as above
        return f"{error} ({_place(error)})"
    return None


def _place(error: Exception) -> str:
    """Type of the error, and line in the template."""
    kind = type(error).__name__
    if isinstance(error, TemplateSyntaxError):
        return f"{kind}, line {error.lineno} of the template"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f"{kind}, line {lines[-1]} of the template" if lines else kind
