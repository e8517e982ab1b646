"""Request and answer of a training engine (one step on token ids), its needs, and the place of its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from claas_crds.base import PayloadModel
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.training import LORA_ID_PATTERN, TrainingConfig


class TokenisedSample(PayloadModel):
    """One answer to learn from, as token ids of the base model. An engine needs no tokenizer and sees no text."""

    model_config = ConfigDict(hide_input_in_errors=True)

    student_prompt_ids: tuple[int, ...]
    """The student's prompt."""
    teacher_prompt_ids: tuple[int, ...]
    """The teacher's prompt, with the feedback as hindsight."""
    response_ids: tuple[int, ...]
    """The response; recorded ids are the sampled ones."""
    old_logprobs: tuple[float, ...] | None = None
    """Log-probability of each response token when it was sampled. None if not recorded: computed under `version`;
    without a `version`, the adapter's own before the step are used, so the importance ratio is 1."""
    version: int | None = None
    """The adapter's version that sampled the response, where `old_logprobs` were not recorded. For the parent of the
    step they are the adapter's own before it."""

    @property
    def tokens(self) -> int:
        """Length of the longer sequence, student's or teacher's."""
        return max(len(self.student_prompt_ids), len(self.teacher_prompt_ids)) + len(self.response_ids)


class DistillBatchRequestPayload(PayloadModel):
    """Request to a training engine: one step on these samples."""

    model_config = ConfigDict(hide_input_in_errors=True)

    lora_id: str = Field(pattern=LORA_ID_PATTERN)
    """The adapter's CLaaS identifier."""
    training: TrainingConfig = TrainingConfig()
    """Settings of the step."""
    samples: tuple[TokenisedSample, ...] = Field(min_length=1)
    """The batch, in the order of the job's samples, so `samples[3]` is the same one for the engine and the user."""
    save_in_place: bool = False
    """Replace the parent version instead of keeping it beside the new one."""

    @property
    def versions(self) -> frozenset[int]:
        """The versions under which log-probabilities are computed."""
        return frozenset(sample.version for sample in self.samples if sample.version is not None)

    @property
    def tokens(self) -> int:
        """Tokens of all samples, prompts and responses."""
        return sum(sample.tokens for sample in self.samples)


class DistillResponse(PayloadModel):
    """Answer of a training engine after one step."""

    lora_id: str
    """The adapter's identifier with the suffix of the new version, as in `user123/coder-v1@7`."""
    metadata: dict[str, JsonValue] = {}
    """Training metrics and diagnostics: loss, gradient norm, step timing."""


class StateRef(BaseModel):
    """Reference to a version's optimiser state: its place, and the engine that can use it."""

    # Kept in version.json: a newer trainer may add fields.
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    engine: str
    """Name of the engine."""
    uri: str
    """A path relative to the version's folder (`.`: the version's own files), or an address that the engine knows."""


OWN_FILES = StateRef(engine=EngineName.LOCAL.value, uri=".")
"""The state of the local engine: files of the version itself, so that it moves together with the version."""


class ServingNeed(StrEnum):
    """A step's need of serving."""

    DEVICE = "device"
    """The device of serving: room in its memory, or the base model's weights in it. A hand-over provides one or the
    other."""
    NOTHING = "nothing"
    """Nothing: the step is computed elsewhere and does not affect serving."""


@dataclass(frozen=True)
class EngineNeeds:
    """Needs of an engine, known without importing the engine and its libraries."""

    serving: ServingNeed
    base_weights: bool
    """Whether the trainer's pod needs the base model's weights; it always needs its configuration and tokenizer."""
    chooses_shape: bool = False
    """Whether it chooses the adapter's alpha and layers itself, so that only the rank is the user's."""


ENGINE_NEEDS: Mapping[EngineName, EngineNeeds] = {
    EngineName.LOCAL: EngineNeeds(ServingNeed.DEVICE, base_weights=True),
    EngineName.TINKER: EngineNeeds(ServingNeed.NOTHING, base_weights=False, chooses_shape=True),
    EngineName.MODAL: EngineNeeds(ServingNeed.NOTHING, base_weights=False),
}
"""Needs of every engine, used by the operator's plans and by the trainer."""
