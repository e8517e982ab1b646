"""Asks the tiny model questions with plain transformers, and judges the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from claas_trainer.samples.hindsight import Message, as_chat, conversation, teacher_conversation
from tests.tiny_model.tasks import Preference, Question, content_right, follows

MAX_ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Answer:
    """One answer as it was generated; `response_ids` ends with the end token, if the model wrote it."""

    prompt_ids: list[int]
    response_ids: list[int]
    text: str


def prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """A conversation as tokens, up to where the answer begins."""
    text = tokenizer.apply_chat_template(as_chat(messages), tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Sequence[Message]],
    *,
    sample: bool,
) -> list[Answer]:
    """One answer to each conversation: sampled at temperature 1 (torch's global generator), or greedy."""
    prompts = [prompt_ids(messages, tokenizer) for messages in conversations]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    # top_k=0 and top_p=1: the whole distribution, so that samples are on-policy.
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=MAX_ANSWER_TOKENS,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **options,
        )
    answers = []
    for prompt, row in zip(prompts, out[:, width:].tolist(), strict=True):
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        answers.append(Answer(prompt, row[:end], tokenizer.decode(row[:end], skip_special_tokens=True)))
    return answers


@dataclass(frozen=True)
class Score:
    """Shares, 0 to 1, of answers that are right and that comply with a preference."""

    content: float
    compliance: float


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Question],
    preference: Preference,
    *,
    sample: bool,
    hints: Sequence[str] | None = None,
    system_prompt: str | None = None,
) -> Score:
    """How a model answers these questions, with one hindsight hint to each or with none."""
    conversations = [conversation(question.text, system_prompt) for question in asked]
    if hints is not None:
        conversations = [
            teacher_conversation(messages, hint) for messages, hint in zip(conversations, hints, strict=True)
        ]
    answers = generate(model, tokenizer, conversations, sample=sample)
    right = sum(content_right(question, answer.text) for question, answer in zip(asked, answers, strict=True))
    kept = sum(follows(preference, answer.text) for answer in answers)
    return Score(right / len(asked), kept / len(asked))
