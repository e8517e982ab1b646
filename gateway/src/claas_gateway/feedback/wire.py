"""The bodies of `POST /v1/feedback` and of its answers, as clients know them; what they do not know is optional."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from claas_gateway.access.bodies import MOST_ITEMS
from claas_gateway.records import ItemState


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL character (U+0000), which no chat has: remove it")
    return text


Text = Annotated[str, AfterValidator(_storable)]
"""A text that a database can keep."""
ShortText = Annotated[Text, Field(max_length=256)]


class _Body(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True, use_attribute_docstrings=True)


class FeedbackBody(_Body):
    """What somebody said about one answer."""

    lora_id: Text = Field(min_length=1, max_length=256)
    """The adapter: its identifier, with `-init` or `-latest` behind it or not, or its model name."""
    prompt: Text | None = Field(default=None, min_length=1)
    """What the user asked. Needed unless `rollout_id` is given."""
    response: Text | None = Field(default=None, min_length=1)
    """The answer that the feedback is about. Needed unless `rollout_id` is given."""
    feedback: Text
    """What is to be better, as said to a person. It may be empty beside a correction only."""
    training: dict[str, JsonValue] = {}
    """Training settings of the step, under CLaaS's names. Unknown ones are ignored."""
    rollout_id: ShortText | None = None
    """The answer by the header `X-Claas-Rollout` that came with it, whatever `prompt` and `response` say."""
    correction: Text = ""
    """A better answer, which the teacher sees."""
    rating: float | None = Field(default=None, allow_inf_nan=False)
    """A rating in whatever unit the application has; kept and shown."""
    tags: list[ShortText] = Field(default=[], max_length=32)
    """Words to find it by; kept and shown."""
    author: ShortText | None = None
    """Who gave the feedback; kept and shown."""
    user: ShortText | None = None
    """The end user whose answer it is about; by default the one the answer was recorded with."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if not self.rollout_id and (self.prompt is None or self.response is None):
            raise ValueError("prompt and response are needed, or rollout_id")
        if not self.feedback and not self.correction:
            raise ValueError("feedback is empty; it may be so beside a correction only")
        return self


class Orchestration(_Body):
    """Hints of older clients about the pause. The adapter's hand-over decides."""

    sleep_before: bool = True
    wake_after: bool = True
    wake_on_failure: bool = True
    sleep_level: int = Field(default=1, ge=1, le=2)
    """Both mean level 1."""


class FeedbackRequestBody(_Body):
    """A batch of feedback on one adapter."""

    requests: list[FeedbackBody] = Field(min_length=1, max_length=MOST_ITEMS)
    """Items that are trained on together, in one step."""
    orchestration: Orchestration = Orchestration()
    """Hints about the pause."""


class DistillResult(BaseModel):
    """The step, for clients that print its measurements."""

    lora_id: str
    metadata: dict[str, int | float | str]


class Paused(BaseModel):
    """What happened to serving."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    slept: bool = False
    """Whether it was paused for the step."""
    woke: bool = False
    """Whether it went on after the pause; where a service samples from the weights, which needs no pause: whether
    the new version is in service."""


class TimingMs(BaseModel):
    """Milliseconds of the step's parts."""

    total: int = 0
    distill: int = 0
    sleep: int = 0
    wake: int = 0
    save: int = 0
    logprobs: int = 0


class ItemAnswer(BaseModel):
    """How far one item of feedback has come."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    state: ItemState
    version: int | None = None
    """The adapter's version that learned from it."""
    reason: str | None = None
    """Why it was refused, in one word."""
    message: str | None = None
    """Why it was refused, as a sentence."""


class FeedbackResponse(BaseModel):
    """The answer to a batch of feedback. With the status 202 the step is still to come, and `distill_result` null."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: str
    """`ok`: a version learned from it. `accepted`: it is stored. `refused`: none will learn from it."""
    request_id: str
    lora_id: str
    distill_result: DistillResult | None = None
    vllm: Paused = Paused()
    feedback_log_path: str
    """Where to ask what became of it."""
    timing_ms: TimingMs = TimingMs()
    batch_size: int
    """Items that are, or are to be, trained on."""
    items: list[ItemAnswer] = []
    """The items, in the order of the request."""
    status_url: str
    """Where to ask what became of it."""


class RefusedResponse(FeedbackResponse):
    """The answer when a step failed for good: what was stored, and why no version learned from it."""

    detail: str


class ItemDetail(ItemAnswer):
    """One item of feedback, with what was said."""

    request_id: str
    namespace: str
    adapter: str
    created: str
    rollout_id: str | None = None
    feedback: str
    correction: str = ""
    rating: float | None = None
    tags: list[str] = []
    author: str | None = None
    user: str | None = None
    batch_id: str | None = None
    """The batch; also the name of its DistillJob."""
    answer_after: str | None = None
    """What the version that learned from it answers to the same prompt."""


class VersionFeedback(BaseModel):
    """The items that a version learned from."""

    namespace: str
    adapter: str
    version: int
    items: list[ItemDetail]


class ScoreBody(_Body):
    """A score that was measured on a version."""

    value: float = Field(allow_inf_nan=False)
