"""Checks of a request for feedback, in the order that clients rely on. Pure: what they need has been looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from claas_gateway.errors import BadRequest, GatewayError, NotFound, TooLarge, Unprocessable
from claas_gateway.feedback.plan.following import Refusal
from claas_gateway.feedback.plan.samples import encoded, fault_of, is_exact, sample_of
from claas_gateway.feedback.plan.training import read_training
from claas_gateway.feedback.wire import FeedbackBody
from claas_gateway.records import FeedbackItem, Rollout


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one item can't be trained on."""

    refusal: Refusal
    message: str

    def error(self) -> GatewayError:
        """The same, when no item of the request can be trained on."""
        match self.refusal:
            case Refusal.NO_ROLLOUT:
                return NotFound(self.message)
            case Refusal.TOO_LARGE:
                return TooLarge(self.message)
            case _:
                return Unprocessable(self.message)


def common_training(bodies: Sequence[FeedbackBody]) -> dict[str, JsonValue]:
    """The training settings, which all items share, as they share the adapter. Raises Unprocessable for a wrong
    setting, BadRequest if items differ."""
    first = bodies[0]
    training = read_training(first.training)
    for body in bodies[1:]:
        if read_training(body.training) != training:
            raise BadRequest("all requests must use the same training config")
        if body.lora_id != first.lora_id:
            raise BadRequest("all requests must use the same lora_id")
    return training


def rollout_fault(body: FeedbackBody, rollout: Rollout | None, *, allow_reconstructed: bool) -> Fault | None:
    """Whether the answer is known, and known well enough."""
    if rollout is None:
        sought = "this rollout_id" if body.rollout_id else "this prompt and response"
        return Fault(
            Refusal.NO_ROLLOUT,
            f"No cached completion for {sought}: the answer was not given through this gateway, or is deleted by now",
        )
    if rollout.incomplete is not None:
        return Fault(
            Refusal.NO_LOGPROBS,
            "the cached completion has no logprobs of the whole answer: it was recorded in part only",
        )
    if not is_exact(rollout) and not allow_reconstructed:
        return Fault(
            Refusal.NO_LOGPROBS,
            "the cached completion has no logprobs: the tokens of the answer, or the version that gave it, are not"
            " known. The adapter's spec.feedback.allowReconstructed trains on its text all the same",
        )
    return None


def sample_size(item: FeedbackItem, rollout: Rollout, most_bytes: int | None) -> int | Fault:
    """The item's size as a sample, in bytes, or why it can't be one. `most_bytes`: the most that a batch can hold;
    None: any size. Takes up to a tenth of a second."""
    sample = sample_of(item, rollout)
    fault = fault_of(sample)
    if fault is not None:
        return Fault(Refusal.INVALID_SAMPLE, f"can't be trained on: {fault}")
    size = len(encoded(sample))
    if most_bytes is not None and size > most_bytes:
        return Fault(Refusal.TOO_LARGE, f"one item takes {size} bytes as a sample; a batch holds {most_bytes}")
    return size
