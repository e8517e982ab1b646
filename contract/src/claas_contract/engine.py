"""What a training engine is asked for and what it answers (one distillation step on token ids), what it
needs, and where it keeps its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from claas_crds.base import PayloadModel
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.training import LORA_ID_PATTERN, TrainingConfig


class TokenisedSample(PayloadModel):
    """One answer to learn from, as token ids of the base model: an engine needs no tokenizer and sees no text."""

    model_config = ConfigDict(hide_input_in_errors=True)

    student_prompt_ids: tuple[int, ...]
    """The prompt that was answered."""
    teacher_prompt_ids: tuple[int, ...]
    """The same prompt with the feedback in it, as hindsight."""
    response_ids: tuple[int, ...]
    """The answer; recorded ids are those that were sampled."""
    old_logprobs: tuple[float, ...] | None = None
    """Log-probability of each token of the answer when it was sampled; None where nobody recorded it: then the
    adapter's own before the step count (importance ratio 1)."""

    @property
    def tokens(self) -> int:
        """Length of the longer of its two sequences."""
        return max(len(self.student_prompt_ids), len(self.teacher_prompt_ids)) + len(self.response_ids)


class DistillBatchRequestPayload(PayloadModel):
    """What a training engine is asked to do: one step on these samples."""

    model_config = ConfigDict(hide_input_in_errors=True)

    lora_id: str = Field(pattern=LORA_ID_PATTERN)
    """The adapter's CLaaS identifier."""
    training: TrainingConfig = TrainingConfig()
    """How the step is taken."""
    samples: tuple[TokenisedSample, ...] = Field(min_length=1)
    """The batch, in the order of the job's samples: `samples[3]` is the same one to an engine and to its user."""
    save_in_place: bool = False
    """Replace the parent version rather than keep it beside the new one."""

    @property
    def tokens(self) -> int:
        """Of all samples, prompts and responses."""
        return sum(sample.tokens for sample in self.samples)


class DistillResponse(PayloadModel):
    """What a training engine answers after one step."""

    lora_id: str
    """The adapter's identifier with the suffix of the new version, as in `user123/coder-v1@7`."""
    metadata: dict[str, JsonValue] = {}
    """Training metrics and diagnostics: loss, gradient norm, step timing."""


class StateRef(BaseModel):
    """Where the optimiser state of a version is, and which engine goes on from it."""

    # Kept in version.json: a newer trainer may add fields.
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    engine: str
    """Name of the engine."""
    uri: str
    """A path relative to the version's folder (`.`: the version's own files), or an address that the engine knows."""


OWN_FILES = StateRef(engine=EngineName.LOCAL.value, uri=".")
"""The state of a version of the local engine: files of the version itself, so that it moves and goes with it."""


class ServingNeed(StrEnum):
    """What a step needs of serving while it is taken."""

    DEVICE = "device"
    """The device that serving computes on: room in its memory, or the base model's weights that lie there. A
    hand-over provides one or the other."""
    NOTHING = "nothing"
    """Nothing: the step is computed elsewhere, and serving goes on as if there were none."""


@dataclass(frozen=True)
class EngineNeeds:
    """What an engine needs; known without the engine and its libraries."""

    serving: ServingNeed
    base_weights: bool
    """Whether the base model's weights must be in the trainer's pod; its configuration and tokenizer always are."""


ENGINE_NEEDS: Mapping[EngineName, EngineNeeds] = {
    EngineName.LOCAL: EngineNeeds(ServingNeed.DEVICE, base_weights=True),
}
"""The needs of every engine: the operator plans by them, and the trainer acts by them."""
