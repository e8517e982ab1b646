"""How rollouts are recorded and feedback is gathered by the gateway."""

from __future__ import annotations

from pydantic import Field

from claas_crds.base import ResourceModel


class RolloutRecording(ResourceModel):
    """What the gateway records of the adapter's answers."""

    logprobs: bool = False
    """Record the log-probability of each sampled token too. Without it the trainer computes them under the version
    that answered; recording costs the server about half again of its API server's CPU for each token. With
    `serving.tinkerProxy` they are recorded in any case: the service tells them with each answer."""


class FeedbackGathering(ResourceModel):
    """How the gateway makes DistillJobs of feedback. Clients that wait for the step get one of their own at once."""

    window_seconds: int = Field(default=10, ge=0, le=86_400)
    """How long the first item of a batch waits for others."""
    max_items: int = Field(default=64, ge=1, le=10_000)
    """A batch that has so many items does not wait any longer."""
    allow_reconstructed: bool = False
    """Train on answers whose sampled token ids are not known, too: the trainer tokenises the text again, and takes
    the importance ratio as 1."""
