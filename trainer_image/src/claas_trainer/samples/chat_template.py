"""From a conversation to a prompt, by a chat template: the model's own, or that of the server."""

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
    """How the prompt of a sample came about."""

    RECORDED = "recorded"
    """It was recorded with the answer."""
    SERVER = "server"
    """Made as the server makes it: by its own settings, or by itself."""
    MODEL = "model"
    """Made by the model's own template: no server could be asked."""


class ChatTemplateError(Exception):
    """A template can't render a conversation. The message says why, without the conversation's texts.

    `by_itself`: it can't render any, so the template is at fault.
    """

    def __init__(self, message: str, *, by_itself: bool) -> None:
        super().__init__(message)
        self.message = message
        self.by_itself = by_itself


class ChatRenderer(Protocol):
    """Whatever makes prompts of conversations."""

    @property
    def origin(self) -> PromptOrigin:
        """Who makes them."""

    @property
    def source(self) -> str:
        """The template's text, for the tokens that it can write; empty where it is not known."""

    def render(self, chat: Chat, *, answer_next: bool) -> str:
        """The prompt; with `answer_next` up to where the answer begins. Raises ChatTemplateError."""

    def with_thinking(self, thinking: bool) -> ChatRenderer:
        """The same with the template's argument `enable_thinking` set, as a request may have it."""


@dataclass(frozen=True)
class TemplateRenderer:
    """A template of the transformers library. `template`: its text, or the name of one of the tokenizer's; None: the
    tokenizer's own. `arguments` are handed to it, as vLLM's --default-chat-template-kwargs are."""

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
    """The server itself, asked for token ids, where it does not tell its template."""

    ask: Callable[[Chat, bool, Mapping[str, JsonValue]], Sequence[int]]
    """Called from a thread that may wait."""
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
    """How the server makes prompts: by the template and arguments that it was started with. Where it does not tell
    them, or has another kind of template than we do, it can be asked."""

    template: str | None = None
    """None: the tokenizer's own."""
    arguments: Mapping[str, JsonValue] = field(default_factory=dict)
    told: bool = True
    """Whether it tells template and arguments."""
    ask: Callable[[Chat, bool, Mapping[str, JsonValue]], Sequence[int]] | None = None


def rendered(apply: Callable[[Chat, bool], str], chat: Chat, answer_next: bool) -> str:
    """What `apply` gives; whatever it raises becomes a ChatTemplateError that quotes nothing of the conversation."""
    try:
        return apply(chat, answer_next)
    except TrainerError:
        raise
    except Exception as error:  # noqa: BLE001 - a template is a program of somebody else's: it may fail in any way
        failure = error
    # A template's words may quote what it was given, so they are taken from conversations of markers alone.
    plain = _why(apply, ({"role": "user", "content": _MARKER},))
    if plain is not None:
        raise ChatTemplateError(plain, by_itself=True) from None
    roles = ", ".join(str(turn["role"]) for turn in chat)
    why = _why(apply, [{**turn, "content": _MARKER} for turn in chat]) or _place(failure)
    raise ChatTemplateError(f"the chat template refuses a conversation of {roles}: {why}", by_itself=False) from None


def _why(apply: Callable[[Chat, bool], str], chat: Sequence[Mapping[str, object]]) -> str | None:
    """Why a conversation of markers can't be rendered; None when it can."""
    try:
        apply(chat, True)
    except Exception as error:  # noqa: BLE001 - as above
        return f"{error} ({_place(error)})"
    return None


def _place(error: Exception) -> str:
    """Kind of error and line of the template."""
    kind = type(error).__name__
    if isinstance(error, TemplateSyntaxError):
        return f"{kind}, line {error.lineno} of the template"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f"{kind}, line {lines[-1]} of the template" if lines else kind
