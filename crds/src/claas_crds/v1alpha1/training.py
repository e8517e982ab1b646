"""Training settings and samples, under the names and with the ranges that CLaaS users know."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field, JsonValue

from claas_crds.base import PayloadModel

LORA_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$"
"""A CLaaS identifier such as `user123/coder-v1`: segments joined by slashes; `@` is kept for versions."""


class TeacherKind(StrEnum):
    """The teacher: the policy that scores the answer with the feedback in view."""

    FROZEN = "frozen"
    """The base model."""
    EMA = "ema"
    """The base model with a moving average of the adapter."""
    TRUST_REGION = "trust_region"
    """A mixture of the base model and the adapter."""


class SupportKind(StrEnum):
    """Over which tokens student and teacher are compared."""

    TOP_K_TAIL = "top_k_tail"
    """The student's K most likely tokens, and one bucket for all others."""
    TOP_K_RENORMALISED = "top_k_renormalised"
    """The student's K most likely tokens alone, renormalised."""
    FULL = "full"
    """The whole vocabulary."""


class TrainingConfig(PayloadModel):
    """How one SDPO step is taken."""

    learning_rate: float = Field(default=3e-5, gt=0)
    """Step size of AdamW."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Divergence between student S and teacher T: 0 is KL(T||S), 1 is KL(S||T), between them the generalised
    Jensen-Shannon divergence."""
    is_clip: float = Field(default=5.0, ge=1, le=20)
    """Upper bound (clip) on the importance ratio: the probability of a response token under the adapter now, divided
    by that when it was sampled."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Largest global norm of the gradient: a longer one is scaled down. 0 switches clipping off."""
    kl_reg_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of the KL penalty that keeps the adapter near the base model; 0 saves a forward pass of the base
    model."""
    teacher_top_k: int | None = Field(default=None, ge=10, le=100)
    """K: how many of the student's most likely tokens are compared with the teacher. `support` says how the others
    are treated. Default: 100, and with Tinker 20, as many as the service tells."""
    support: SupportKind = SupportKind.TOP_K_TAIL
    """Tokens over which student and teacher are compared: `top_k_tail`, the student's top K and one bucket for the
    rest; `top_k_renormalised`, the top K alone, both distributions renormalised; `full`, the whole vocabulary, which
    takes the most time and memory."""
    teacher: TeacherKind = TeacherKind.FROZEN
    """The teacher, which sees the feedback: `frozen`, the base model; `ema`, the base model with an exponential
    moving average of the adapter; `trust_region`, a mixture of the base model and the adapter."""
    teacher_update_rate: float = Field(default=0.05, gt=0, le=1)
    """How much the teacher follows the adapter. For `ema`, the weight of the new adapter in the average after each
    step; for `trust_region`, the adapter's weight in the teacher's logits. No effect for `frozen`."""
    max_kl: float = Field(default=1.0, ge=0)
    """Largest KL divergence from the parent version that a step may cause, in nats per token. A step beyond it fails
    and publishes nothing; 0 sets no limit."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Decoupled weight decay of AdamW."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Seed of the step: the same input, parent version and seed give the same bytes on a CPU."""
    require_recorded_prompt: bool = False
    """Refuse samples without a recorded prompt that ends with their `user_prompt`. Otherwise the conversation is
    rebuilt from the sample's texts and lacks whatever they do not show."""


class TrainingOverrides(PayloadModel):
    """Training settings of one job; the adapter's `spec.training` supplies those left out."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Step size of AdamW."""
    alpha: float | None = Field(default=None, ge=0, le=1)
    """Divergence: 0 is KL(T||S), 1 is KL(S||T), between them the generalised Jensen-Shannon divergence."""
    is_clip: float | None = Field(default=None, ge=1, le=20)
    """Upper bound (clip) on the importance ratio."""
    max_grad_norm: float | None = Field(default=None, ge=0)
    """Largest global norm of the gradient: a longer one is scaled down. 0 switches clipping off."""
    kl_reg_weight: float | None = Field(default=None, ge=0, le=1)
    """Weight of the KL penalty that keeps the adapter near the base model."""
    teacher_top_k: int | None = Field(default=None, ge=10, le=100)
    """K: how many of the student's most likely tokens are compared with the teacher."""
    support: SupportKind | None = None
    """Tokens over which student and teacher are compared: `top_k_tail`, `top_k_renormalised` or `full`."""
    teacher: TeacherKind | None = None
    """The teacher: `frozen`, the base model; `ema`, a moving average of the adapter; `trust_region`, a mixture of
    base model and adapter."""
    teacher_update_rate: float | None = Field(default=None, gt=0, le=1)
    """How much the teacher follows the adapter; no effect for `frozen`."""
    max_kl: float | None = Field(default=None, ge=0)
    """Largest KL divergence from the parent version, in nats per token; a step beyond it fails. 0 sets no limit."""
    weight_decay: float | None = Field(default=None, ge=0, le=1)
    """Decoupled weight decay of AdamW."""
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """Seed of the step."""
    require_recorded_prompt: bool | None = None
    """Refuse samples without a recorded prompt that ends with their `user_prompt`."""

    def over(self, defaults: TrainingConfig) -> TrainingConfig:
        """`defaults`, overridden by every value that is set here."""
        return TrainingConfig.model_validate(defaults.model_dump() | self.model_dump(exclude_none=True))


class TurnRole(StrEnum):
    """Who speaks in a turn of a conversation."""

    SYSTEM = "system"
    """The system prompt; the first turn alone."""
    USER = "user"
    """The user."""
    ASSISTANT = "assistant"
    """The model."""


class ChatTurn(PayloadModel):
    """One turn of a conversation."""

    model_config = ConfigDict(hide_input_in_errors=True)

    role: TurnRole
    """Who speaks: `system` (the first turn alone), `user` or `assistant`."""
    content: str
    """What was said, without any template."""


SAMPLE_ID_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$"
"""A sample's identifier, or none."""

_NOT_BLANK: dict[str, JsonValue] = {"pattern": r"\S"}
"""For the API server only: `samples.checks` gives a better message and knows zero-width characters."""
_EMPTY_OR_NOT_BLANK: dict[str, JsonValue] = {"pattern": r"^$|\S"}
_SOMETHING_TO_LEARN: dict[str, JsonValue] = {
    "x-kubernetes-validations": [
        {
            "rule": "has(self.feedback) && self.feedback.size() > 0"
            " || has(self.correction) && self.correction.size() > 0",
            "message": "every sample needs a feedback, or a correction: the better answer",
            "fieldPath": ".feedback",
            "reason": "FieldValueRequired",
        }
    ]
}


class DistillBatchItem(PayloadModel):
    """One answer and the feedback on it.

    A recorded rollout carries token ids and log-probabilities; a sample written by hand needs only
    `user_prompt`, `response`, and `feedback` or `correction`.
    """

    model_config = ConfigDict(hide_input_in_errors=True, json_schema_extra=_SOMETHING_TO_LEARN)

    user_prompt: str = Field(json_schema_extra=_NOT_BLANK)
    """What the user asked, without any template."""
    response: str = Field(json_schema_extra=_NOT_BLANK)
    """The answer that the feedback is about."""
    feedback: str = Field(default="", json_schema_extra=_EMPTY_OR_NOT_BLANK)
    """What the user said about the answer; the teacher sees it as hindsight. Needed unless there is a
    `correction`."""
    correction: str = Field(default="", json_schema_extra=_EMPTY_OR_NOT_BLANK)
    """A better answer to `user_prompt`, whole; the teacher sees it as hindsight, before the feedback."""
    system_prompt: str = ""
    """The system prompt the answer was given under; empty when there was none."""
    messages: list[ChatTurn] = []
    """The turns before `user_prompt`, oldest first; empty when it was the first thing said."""
    prompt: str = ""
    """The prompt with the chat template applied, as the model saw it; empty for samples written by hand."""
    prompt_token_ids: list[int] = []
    """Token ids of `prompt`. Empty: the trainer renders the conversation with the chat template."""
    response_token_ids: list[int] = []
    """Token ids that the model sampled. Empty: the trainer tokenises `response`."""
    response_logprobs: list[float] = []
    """Log-probability of each token when it was sampled. Empty: computed under `version`; without a `version`, the
    adapter's own before the step, so the importance ratio is 1."""
    version: int | None = Field(default=None, ge=0)
    """The adapter's version that sampled `response_token_ids`. The trainer computes log-probabilities that were not
    recorded under this version, at temperature 1. Left out: not known."""
    id: str = Field(default="", pattern=SAMPLE_ID_PATTERN)
    """The sender's identifier of this feedback; the version that learned from it records it."""
