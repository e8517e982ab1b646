"""What the gateway stores and its rooms hand each other, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pydantic import JsonValue


class Evidence(StrEnum):
    """How the token ids of a rollout are known."""

    EXACT = "exact"
    """Recorded inside the server, by the companion."""
    WIRE = "wire"
    """Asked for with the answer, from a server without the companion."""
    NONE = "none"
    """Not known: there are texts only."""


class RolloutKind(StrEnum):
    """The route that gave the answer."""

    CHAT = "chat"
    COMPLETION = "completion"


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer, as it was sampled; a request with `n` answers has as many rollouts."""

    id: str
    namespace: str
    adapter: str | None
    """The LoraAdapter; None: the base model answered."""
    request_id: str
    """The same for all answers to one request."""
    choice: int
    """Index among the answers to the request."""
    kind: RolloutKind
    created: datetime
    version: int | None
    """The adapter's version that answered; None: the base model, or not known."""
    user: str | None
    """The end user, as the application calls them (OpenAI's `user`)."""
    request: dict[str, JsonValue]
    """The request's body, whole: messages or prompt, tools, sampling settings."""
    system_prompt: str
    user_prompt: str
    """The text of the user's last message, or the prompt of a completion."""
    answer: str
    """The visible answer: without thinking and channel tags."""
    answer_hash: str
    """`rollouts.hashing.answer_hash` of `answer`."""
    prompt_hash: str
    """`rollouts.hashing.prompt_hash` of `user_prompt`."""
    evidence: Evidence
    prompt_token_ids: tuple[int, ...] = ()
    response_token_ids: tuple[int, ...] = ()
    response_logprobs: tuple[float, ...] = ()
    """One for each response token; empty when they were not recorded."""
    sampling: dict[str, JsonValue] = field(default_factory=dict)
    """Settings the server really sampled with, as far as it told: temperature, top_p and so on."""
    finish_reason: str | None = None
    incomplete: str | None = None
    """Why this is not the whole answer, or not surely so; None: it is whole. Never trained on if set."""

    @property
    def trainable(self) -> bool:
        """Whether it is whole and its token ids are known."""
        return self.incomplete is None and bool(self.prompt_token_ids) and bool(self.response_token_ids)


class RequestMode(StrEnum):
    """Whether the client waits for the step."""

    SYNC = "sync"
    ASYNC = "async"


class ItemState(StrEnum):
    """How far an item of feedback has come."""

    STORED = "stored"
    """It is stored and waits for its batch."""
    BATCHED = "batched"
    """It belongs to a batch whose job is not made yet."""
    IN_JOB = "in-job"
    """Its batch is a DistillJob."""
    IN_VERSION = "in-version"
    """A version learned from it. Final."""
    REFUSED = "refused"
    """No version learned from it, nor will; the reason says why. Final."""


@dataclass(frozen=True, slots=True)
class FeedbackItem:
    """One item of feedback."""

    id: str
    request_id: str
    position: int
    """Its place in the request."""
    namespace: str
    adapter: str
    created: datetime
    feedback: str
    state: ItemState
    rollout_id: str | None = None
    correction: str = ""
    """The better answer, which the teacher sees."""
    rating: float | None = None
    tags: tuple[str, ...] = ()
    author: str | None = None
    """Who gave the feedback."""
    user: str | None = None
    """The end user whose answer it is about."""
    training: dict[str, JsonValue] = field(default_factory=dict)
    """The training settings it was sent with."""
    batch_id: str | None = None
    version: int | None = None
    """The version that learned from it."""
    reason: str | None = None
    """Why it was refused, in one CamelCase word."""
    message: str | None = None
    """The same for people; never quotes the item."""
    answer_after: str | None = None
    """What that version answers to the same prompt, once it was asked."""
    erased: bool = False
    """Whether its texts were deleted, for their age or for a user. No job is made with it any more."""


@dataclass(frozen=True, slots=True)
class FeedbackRequest:
    """One request that brought feedback."""

    id: str
    namespace: str
    adapter: str
    lora_id: str
    """The identifier as the client gave it."""
    mode: RequestMode
    created: datetime
    body_hash: str
    """SHA-256 of what the client sent, in a canonical form."""
    key_name: str = ""
    """The API key that sent it."""
    idempotency_key: str | None = None
    """The client's key; unique together with namespace and `key_name`."""


class BatchState(StrEnum):
    """How far a batch has come."""

    FORMED = "formed"
    """Its members are committed; its job may or may not exist."""
    SUBMITTED = "submitted"
    """Its DistillJob exists."""
    ACCOUNTED = "accounted"
    """The job's end was written down for each member. Final."""


@dataclass(frozen=True, slots=True)
class FeedbackBatch:
    """Items that are trained on together, in one step."""

    id: str
    """Also what the DistillJob is called."""
    namespace: str
    adapter: str
    adapter_uid: str
    created: datetime
    state: BatchState
    training: dict[str, JsonValue] = field(default_factory=dict)
    job_uid: str | None = None
    phase: str | None = None
    """The job's phase, as it was seen last."""
    submitted: datetime | None = None
    accounted: datetime | None = None
    version: int | None = None
    reason: str | None = None
    message: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, as in the job's status."""
    handover: str | None = None
    weights: str | None = None
    """Address of the version's weights in the engine's service; None: they are in its folder alone."""
    served: bool | None = None
    """Whether the version was in service when the batch was accounted for; None: not known."""


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """What became of one item when its batch was accounted for."""

    item_id: str
    state: ItemState
    version: int | None = None
    reason: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class VersionSeen:
    """A version as an adapter's status showed it; kept after status has forgotten it."""

    namespace: str
    adapter: str
    number: int
    digest: str
    created: datetime
    parent: int | None
    job: str | None
    job_uid: str | None
    metrics: dict[str, float]
    verdict: str
    serving_gap_seconds: float | None = None
    weights: str | None = None
    """Address of its weights in the engine's service; None: they are in its folder alone."""


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """The served version of an adapter changed."""

    namespace: str
    adapter: str
    at: datetime
    version: int
    previous: int | None

    @property
    def is_rollback(self) -> bool:
        """Whether an older version took the place of a newer one."""
        return self.previous is not None and self.version < self.previous


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """A score that somebody measured on a version, such as the share of answers that comply."""

    namespace: str
    adapter: str
    version: int
    name: str
    value: float
    at: datetime
