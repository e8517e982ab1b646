"""Estimates before the pause whether a step fits into the longest pause, from its parent's step.

Only if the parent's step paused serving too, on a device of the same name, with the same forward and kind of teacher.
Apart from constant parts, a step's time grows at least linearly with its tokens. The parent's step may have been slow
by chance, or have run its samples through earlier versions too. Therefore only a batch of at least twice the tokens
is judged, and it is refused only if the estimate exceeds the limit by half.
"""

from __future__ import annotations

from claas_contract.input import ServingTarget
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.training import TeacherKind
from claas_trainer.engines.base import EngineReadiness
from claas_trainer.errors import EngineError
from claas_trainer.store.record import VersionRecord

LARGER = 2
"""Smallest ratio of a batch's tokens to the parent's for which a step is judged."""
CERTAINTY = 1.5
"""Ratio of estimate to limit above which a step is refused."""


def check_pause(
    parent: VersionRecord, ready: EngineReadiness, tokens: int, teacher: TeacherKind, serving: ServingTarget | None
) -> None:
    """Raises EngineError (MAX_PAUSE_EXCEEDED) if the step certainly needs a longer pause than allowed."""
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


def pause_seconds(parent: VersionRecord, ready: EngineReadiness, tokens: int, teacher: TeacherKind) -> float | None:
    """Estimated pause of a step; None if the parent's step is not comparable."""
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
    # The other parts (sleep, copying the weights, release, wake) do not grow with the step.
    rest = max(0.0, timings.serving_gap - timings.step)
    return rest + timings.step * tokens / step.tokens
