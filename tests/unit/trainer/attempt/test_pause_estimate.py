"""Whether a step fits into the longest pause is said before serving is paused, and only where it is known."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_contract.input import ServingTarget, VllmPod
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.step import Timings
from claas_crds.v1alpha1.training import TeacherKind, TrainingConfig
from claas_trainer.attempt.pause_estimate import check_pause, pause_seconds
from claas_trainer.engines.base import EngineReadiness
from claas_trainer.errors import EngineError
from claas_trainer.store.record import ForwardKind, LocalProvenance, VersionRecord

DEVICE = "NVIDIA H100"
TRAINING = TrainingConfig()
POD = VllmPod(name="vllm-0", uid="u", url="http://vllm-0:8000")


def parent(
    *,
    step: float | None = 20.0,
    gap: float | None = 30.0,
    tokens: int | None = 1000,
    device: str = DEVICE,
    forward: ForwardKind = ForwardKind.DECODER,
    training: TrainingConfig | None = TRAINING,
) -> VersionRecord:
    return VersionRecord(
        number=3,
        lora_id="team/tone",
        created=datetime(2026, 5, 4, tzinfo=UTC),
        engine="local",
        base_model="base",
        lora=LoraSpec(),
        training=training,
        timings=Timings(step=step, serving_gap=gap),
        step=LocalProvenance(
            parent_digest="",
            base_fingerprint="",
            samples_digest="",
            tokens=tokens,
            forward=forward,
            device=device,
            compute_dtype="bfloat16",
            micro_batch_tokens=1,
            tile_rows=1,
        ),
    )


READY = EngineReadiness(1, device=DEVICE, forward=ForwardKind.DECODER.value)


def serving(handover: HandoverKind = HandoverKind.SLEEP, pods: tuple[VllmPod, ...] = (POD,)) -> ServingTarget:
    return ServingTarget(served_name="tone", pods=list(pods), handover=handover, max_pause_seconds=120)


def test_a_step_grows_with_its_tokens_and_what_is_around_it_does_not() -> None:
    assert pause_seconds(parent(), READY, 4000, TRAINING.teacher) == pytest.approx(10 + 80)
    assert pause_seconds(parent(), READY, 8000, TRAINING.teacher) == pytest.approx(10 + 160)


def test_a_step_that_surely_does_not_fit_is_refused_with_the_figures_and_what_to_do() -> None:
    with pytest.raises(EngineError) as caught:
        check_pause(parent(), READY, 20_000, TRAINING.teacher, serving())
    assert caught.value.reason is FailureReason.MAX_PAUSE_EXCEEDED
    for figure in ("20000 tokens", "410 s", "version 3", "1000 tokens", "30 s", "maxPauseSeconds is 120"):
        assert figure in caught.value.message


def test_a_step_that_may_fit_is_taken() -> None:
    check_pause(parent(), READY, 8_500, TRAINING.teacher, serving())


UNKNOWN: list[tuple[str, VersionRecord]] = [
    ("took no step", parent().model_copy(update={"step": None})),
    ("was taken beside serving", parent(gap=0.0)),
    ("was not timed", parent(step=None, gap=None)),
    ("did not record its tokens", parent(tokens=None)),
    ("was taken on another device", parent(device="NVIDIA L4")),
    ("was taken by the other forward", parent(forward=ForwardKind.PEFT)),
    ("had another kind of teacher", parent(training=TrainingConfig(teacher=TeacherKind.EMA))),
    ("did not record its settings", parent(training=None)),
]


@pytest.mark.parametrize("of", [row[1] for row in UNKNOWN], ids=[row[0] for row in UNKNOWN])
def test_nothing_is_refused_when_the_parent(of: VersionRecord) -> None:
    check_pause(of, READY, 10**9, TRAINING.teacher, serving())


BESIDE = [None, serving(HandoverKind.SHARE), serving(HandoverKind.NONE), serving(pods=())]


@pytest.mark.parametrize("target", BESIDE, ids=["no-serving", "share", "none", "no-pods"])
def test_a_step_that_pauses_nobody_is_never_refused_for_its_pause(target: ServingTarget | None) -> None:
    check_pause(parent(), READY, 10**9, TRAINING.teacher, target)


@given(
    step=st.floats(0.01, 10_000), rest=st.floats(0, 200), tokens=st.integers(1, 10**6), factor=st.floats(0.01, 1.9)
)
def test_a_batch_of_about_the_parents_size_is_never_refused(
    step: float, rest: float, tokens: int, factor: float
) -> None:
    of = parent(step=step, gap=step + rest, tokens=tokens)
    check_pause(of, READY, max(1, int(tokens * factor)), TRAINING.teacher, serving())
