"""From a rollout and the feedback on it to a sample of a DistillJob."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pydantic import JsonValue

from claas_crds.samples.checks import SampleError, check_sample
from claas_crds.samples.turns import Dialogue, read_dialogue
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_gateway.records import FeedbackItem, Rollout, RolloutKind

LARGEST_SECRET_BYTES = 900_000
"""Largest document of samples that goes into a Secret, which holds 1 MiB with all that belongs to it."""


def of_adapter(rollout: Rollout, adapter_created: datetime | None) -> Rollout:
    """The rollout as an adapter that was created then may use it. An answer from before was given by an earlier
    adapter of the same name, whose versions have nothing to do with this one's."""
    if adapter_created is None or rollout.version is None or rollout.created >= adapter_created:
        return rollout
    return replace(rollout, version=None)


def is_exact(rollout: Rollout) -> bool:
    """Whether the tokens are known, and their log-probabilities are or can be computed under the version that
    answered."""
    return rollout.trainable and (bool(rollout.response_logprobs) or rollout.version is not None)


def sample_of(item: FeedbackItem, rollout: Rollout) -> DistillBatchItem:
    """The sample; not checked."""
    dialogue = _dialogue(rollout)
    known = rollout.trainable
    return DistillBatchItem(
        user_prompt=dialogue.user_prompt,
        response=rollout.answer,
        feedback=item.feedback,
        correction=item.correction,
        id=item.id,
        version=rollout.version if known else None,
        system_prompt=dialogue.system_prompt,
        messages=list(dialogue.earlier),
        prompt_token_ids=list(rollout.prompt_token_ids) if known else [],
        response_token_ids=list(rollout.response_token_ids) if known else [],
        response_logprobs=list(rollout.response_logprobs) if known else [],
    )


def fault_of(sample: DistillBatchItem) -> str | None:
    """What is wrong with a sample, as far as that is known without the model; never quotes a text."""
    try:
        check_sample(0, sample)
    except SampleError as error:
        return f"{error.field}: {error.message}" if error.field else error.message
    return None


def encoded(sample: DistillBatchItem) -> bytes:
    """The sample as a line of a document of JSON lines."""
    return sample.model_dump_json(exclude_defaults=True).encode()


def document(lines: Sequence[bytes]) -> bytes:
    """The document of a batch."""
    return b"".join(line + b"\n" for line in lines)


def _dialogue(rollout: Rollout) -> Dialogue:
    """The conversation. Where it can't be told as texts alone, as with tool calls, the recorded prompt holds it, and
    the last message is what counts."""
    last = Dialogue(rollout.system_prompt, (), rollout.user_prompt, None)
    messages = rollout.request.get("messages")
    if rollout.kind is not RolloutKind.CHAT or not isinstance(messages, list):
        return last
    try:
        return read_dialogue(0, "messages", messages, answered=True, recorded=rollout.trainable)
    except SampleError:
        return last


def training_key(training: Mapping[str, JsonValue]) -> tuple[tuple[str, str], ...]:
    """What two items must have in common to be trained on together."""
    return tuple(sorted((name, repr(value)) for name, value in training.items()))
