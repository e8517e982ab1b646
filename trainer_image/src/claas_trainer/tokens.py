"""From checked samples to token ids: the student's prompt, the teacher's prompt with hindsight, the response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from claas_crds.contract import FailureReason
from claas_crds.distill_job import SampleCounts
from claas_crds.training import DistillBatchItem
from claas_trainer.batch import StepSample
from claas_trainer.errors import InputError, SampleError
from claas_trainer.samples import ModelLimits, check_against_model, check_length
from claas_trainer.step_errors import HindsightError
from claas_trainer.teachers.hindsight import (
    Message,
    Role,
    as_chat,
    closing_text,
    conversation,
    insert_hindsight,
    teacher_conversation,
)

_QUESTION, _ANSWER = "question-placeholder", "answer-placeholder"


class ChatTokenizer(Protocol):
    """The part of a tokenizer that samples need."""

    @property
    def end_of_turn_ids(self) -> frozenset[int]:
        """Tokens at which generation stops."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added; those spelled out in the text count as such."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""

    def render(self, chat: list[dict[str, str]], *, answer_next: bool, thinking: bool) -> str:
        """The chat template applied; with `answer_next` up to where the answer begins."""


@dataclass(frozen=True)
class TokenisedBatch:
    """What the step is taken on, in the samples' order."""

    samples: tuple[StepSample, ...]
    counts: SampleCounts


def tokenise(items: Sequence[DistillBatchItem], tokenizer: ChatTokenizer, limits: ModelLimits) -> TokenisedBatch:
    """Token ids of every sample: recorded ones are taken exactly as they are, the others are made.

    Raises SampleError for a sample that does not fit the model, InputError for a template that can't be used.
    """
    try:
        closings = _closings(tokenizer)
    except HindsightError as error:
        raise InputError(str(error), FailureReason.MODEL_NOT_FOUND) from None
    ending = _turn_ending(tokenizer)
    samples = []
    for index, item in enumerate(items):
        check_against_model(index, item, limits)
        samples.append(_tokenise(index, item, tokenizer, closings, ending, limits))
    recorded = sum(bool(item.response_token_ids and item.response_logprobs) for item in items)
    counts = SampleCounts(
        total=len(items),
        recorded=recorded,
        reconstructed=len(items) - recorded,
        response_tokens=sum(len(sample.response_ids) for sample in samples),
    )
    return TokenisedBatch(tuple(samples), counts)


def _closings(tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """What the template puts after the user's last message: when the model is to think, and when it is not."""

    def renderer(thinking: bool) -> Callable[[list[dict[str, str]]], str]:
        return lambda chat: tokenizer.render(chat, answer_next=True, thinking=thinking)

    return tuple(dict.fromkeys(closing_text(renderer(thinking)) for thinking in (True, False)))


def _tokenise(
    index: int,
    item: DistillBatchItem,
    tokenizer: ChatTokenizer,
    closings: Sequence[str],
    ending: Sequence[int],
    limits: ModelLimits,
) -> StepSample:
    earlier = [Message(Role(turn.role.value), turn.content) for turn in item.messages]
    chat = conversation(item.user_prompt, item.system_prompt or None, earlier)
    rendered = item.prompt or (tokenizer.decode(item.prompt_token_ids) if item.prompt_token_ids else "")
    if not rendered:
        rendered = tokenizer.render(as_chat(chat), answer_next=True, thinking=True)
    student = item.prompt_token_ids or tokenizer.encode(rendered)
    teacher = tokenizer.encode(_hinted(rendered, chat, item, tokenizer, closings))
    response = item.response_token_ids or [*tokenizer.encode(item.response), *ending]
    if not response:
        raise SampleError(f"samples[{index}].response", "has no tokens")
    for field, prompt in (("user_prompt", student), ("feedback", teacher)):
        if not prompt:
            raise SampleError(f"samples[{index}].{field}", "has no tokens")
        check_length(index, field, len(prompt) + len(response), limits)
    # Rounding may have left a value a little above 0.
    logprobs = tuple(min(value, 0.0) for value in item.response_logprobs)
    return StepSample(tuple(student), tuple(teacher), tuple(response), logprobs or None)


def _hinted(
    rendered: str,
    chat: Sequence[Message],
    item: DistillBatchItem,
    tokenizer: ChatTokenizer,
    closings: Sequence[str],
) -> str:
    try:
        return insert_hindsight(rendered, item.user_prompt, item.feedback, closings)
    except HindsightError:
        # The recorded prompt does not show user_prompt: earlier turns are lost, the rest is kept.
        thinking = len(closings) == 1 or not rendered.endswith(closings[1])
        hinted = teacher_conversation(chat, item.feedback)
        return tokenizer.render(as_chat(hinted), answer_next=True, thinking=thinking)


def _turn_ending(tokenizer: ChatTokenizer) -> tuple[int, ...]:
    """The token with which the model ends an answer, as the chat template writes it; empty when there is none."""
    chat = as_chat((Message(Role.USER, _QUESTION), Message(Role.ASSISTANT, _ANSWER)))
    _, found, closing = tokenizer.render(chat, answer_next=False, thinking=True).rpartition(_ANSWER)
    after = tokenizer.encode(closing.lstrip()) if found else []
    if after and after[0] in tokenizer.end_of_turn_ids:
        return (after[0],)
    # A template that writes no ending: the model's own end of text.
    return tuple(sorted(tokenizer.end_of_turn_ids)[:1])
