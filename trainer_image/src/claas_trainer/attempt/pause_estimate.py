"""Whether a step fits into the longest pause, by what its parent's step took: said before serving is paused.

Only what is known is judged: a parent whose step paused serving too, on a device of the same name, by the same
forward and with the same kind of teacher. A step's time grows with its tokens at least linearly, but for what is done
once, and the parent's may have been slow by chance: so only a batch that is twice as large is judged, and it is
refused only when the estimate is over the limit by half.
"""

from __future__ import annotations

from claas_contract.input import ServingTarget
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.lora_adapter import HandoverKind
from claas_crds.v1alpha1.training import TeacherKind
from claas_trainer.engines.base import Readiness
from claas_trainer.errors import EngineError
from claas_trainer.store.record import VersionRecord

LARGER = 2
"""How many times as many tokens as its parent's a batch must have to be judged."""
CERTAINTY = 1.5
"""By how much an estimate must be over the limit before a step is refused for it."""


def check_pause(
    parent: VersionRecord, ready: Readiness, tokens: int, teacher: TeacherKind, serving: ServingTarget | None
) -> None:
    """Raises EngineError (MAX_PAUSE_EXCEEDED) when the step surely needs a longer pause than it may take."""
    if serving is None or serving.handover is not HandoverKind.SLEEP or not serving.pods:
        return
    seconds = pause_seconds(parent, ready, tokens, teacher)
    limit = serving.max_pause_seconds
    if seconds is None or seconds <= limit * CERTAINTY:
        return
    known = parent.step.tokens if parent.step is not None else None
    raise EngineError(
        FailureReason.MAX_PAUSE_EXCEEDED,
        f"the step of {tokens} tokens would pause serving for about {seconds:.0f} s, by version"
        f" {parent.number}, whose {known} tokens took {parent.timings.serving_gap:.0f} s, and maxPauseSeconds is"
        f" {limit}; it was not begun; give smaller batches or a larger maxPauseSeconds",
    )


def pause_seconds(parent: VersionRecord, ready: Readiness, tokens: int, teacher: TeacherKind) -> float | None:
    """How long the pause of a step will be; None when the parent's says too little about it."""
    timings, step = parent.timings, parent.local
    alike = (
        step is not None
        and step.device == ready.device
        and step.forward.value == ready.forward
        and parent.training is not None
        and parent.training.teacher is teacher
    )
    if step is None or not alike or not step.tokens or not tokens:
        return None
    if not timings.serving_gap or timings.step is None or tokens < LARGER * step.tokens:
        return None
    # What is not the step itself (to sleep, the weights' way to the device and back, to wake) does not grow with it.
    rest = max(0.0, timings.serving_gap - timings.step)
    return rest + timings.step * tokens / step.tokens
