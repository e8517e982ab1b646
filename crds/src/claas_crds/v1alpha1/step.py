"""A training step in status: its phase, how long its parts took, and what became of its samples."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from claas_crds.base import ResourceModel


class JobPhase(StrEnum):
    """Progress of a job, for people; programs read the conditions."""

    PENDING = "Pending"
    """The operator has not seen it yet, or its adapter is not ready."""
    QUEUED = "Queued"
    """Waiting for its turn: a Deployment takes one step at a time."""
    SUSPENDED = "Suspended"
    """Suspended by `spec.suspend`."""
    PREPARING = "Preparing"
    """The trainer checks samples and loads the model; serving goes on."""
    PAUSING = "Pausing"
    """Serving is being paused (hand-over Sleep)."""
    TRAINING = "Training"
    """The step is being taken; serving is paused (hand-over Sleep) or goes on."""
    RESUMING = "Resuming"
    """Serving is being woken (hand-over Sleep)."""
    PUBLISHING = "Publishing"
    """The new version is being written to the volume; serving goes on."""
    SWAPPING = "Swapping"
    """The new version is being put into service."""
    SUCCEEDED = "Succeeded"
    """The new version is in service; with `completeWhen: Published` it is published."""
    FAILED = "Failed"
    """No step was taken, or its version could not be put into service."""


class Timings(ResourceModel):
    """Seconds that each phase took. All but `queued` and `servingGap` follow one another and add up to the time from
    `startTime` to `completionTime`."""

    queued: float | None = None
    """From the job's creation to its admission."""
    retried: float | None = None
    """Failed attempts, and the waits between them."""
    start: float | None = None
    """From admission of the attempt until the trainer works: the pod is created, scheduled and started, images are
    pulled, programs loaded."""
    prepare: float | None = None
    """Checks, tokenising, loading weights; serving goes on."""
    sleep: float | None = None
    """From the pause call until serving was paused and its memory was free."""
    load: float | None = None
    """Copying the weights to the device."""
    step: float | None = None
    """Forward, backward and optimiser."""
    release: float | None = None
    """Freeing the device."""
    wake: float | None = None
    """Waking serving, until it answered again."""
    publish: float | None = None
    """Writing the version; serving goes on."""
    swap: float | None = None
    """Putting the version into service: load, probe and flip of the served name."""
    settle: float | None = None
    """Everything else until the job was complete: the trainer ends, the operator notices, and it loads the version
    into pods that the trainer did not reach."""
    serving_gap: float | None = None
    """The pause that clients notice: from the pause call until serving was awake. 0 when serving went on during the
    step."""

    @property
    def seconds(self) -> float:
        """Sum of the phases that follow one another."""
        parts = self.model_dump(exclude_none=True, exclude={"queued", "serving_gap"})
        return sum(float(value) for value in parts.values())


class SampleCounts(ResourceModel):
    """Counts of the samples that the step was taken on."""

    total: int = 0
    """Samples in the batch."""
    recorded: int = 0
    """Samples with the token ids and log-probabilities of a recorded rollout."""
    computed: int = 0
    """Samples with recorded token ids; their log-probabilities were computed under the version that answered."""
    reconstructed: int = 0
    """All others: the trainer made their token ids, or takes the adapter's own log-probabilities before the step for
    the old ones. Their importance ratio is 1."""
    lost_versions: int = 0
    """Those among the reconstructed whose `version` can't be used: it is not on the volume, damaged, or of another
    shape."""
    response_tokens: int = 0
    """Response tokens, over which the loss is averaged."""
    recorded_prompts: int = 0
    """Samples whose prompt was recorded with the answer."""
    server_prompts: int = 0
    """Samples whose prompt was rendered with the server's chat template and template arguments."""
    template_prompts: int = 0
    """Samples whose prompt was rendered with the model's own chat template, because no server could be asked."""
    hints_inserted: int = 0
    """Samples whose teacher prompt is the recorded prompt with the feedback inserted after the user's last
    message."""
    rebuilt_conversations: int = 0
    """Samples with a recorded prompt that does not end with `user_prompt`. Their teacher prompt is rebuilt from the
    sample's texts and lacks whatever only the recorded prompt holds."""


MOST_INVALID_SAMPLES = 50
"""How many invalid samples a status names. A trainer's report has 4 KiB."""


class InvalidSample(ResourceModel):
    """A sample that can't be trained on."""

    index: int = Field(ge=0)
    """Its place in the batch, from 0."""
    message: str = ""
    """Its field, what is wrong and what to do; never a text of the sample. Cut if there are many."""
