"""What a step by the Tinker service asks for, what it refuses, and what it leaves behind when it is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from torch import Tensor

from claas_contract.engine import DistillBatchRequestPayload, TokenisedSample
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.training import SupportKind, TeacherKind, TrainingConfig
from claas_tinker_client.version_file import TinkerVersion
from claas_trainer.engines.registry import make_engine
from claas_trainer.engines.tinker.remote_run import RemoteRun
from claas_trainer.errors import TrainerError
from claas_trainer.store.record import RemoteProvenance
from tests.contract.tinker.both_engines import Side, samples, tinker_side
from tests.peers.tinker.calls import BILLED, Operation
from tests.peers.tinker.model.sampling import SamplingLimits
from tests.peers.tinker.model.training import Trainee
from tests.peers.tinker.model.wire import TrainRequest
from tests.peers.tinker.server import TinkerPeer

pytestmark = pytest.mark.contract

TRAINING = TrainingConfig(learning_rate=3e-4)
HINTED = samples(1, recorded=False)
SAVES = (Operation.SAVE_STATE, Operation.SAVE_FOR_SAMPLER, Operation.SAVE_EXTERNAL)


@pytest.fixture
def peer(tinker_model: Path) -> Iterator[TinkerPeer]:
    with TinkerPeer(tinker_model) as peer:
        yield peer


@pytest.fixture
def side(tmp_path: Path, tinker_model: Path, peer: TinkerPeer) -> Side:
    return tinker_side(tmp_path / "adapter", tinker_model, peer)


def called(peer: TinkerPeer, *operations: Operation) -> int:
    return sum(len(peer.called(operation)) for operation in operations)


async def refused(side: Side, training: TrainingConfig = TRAINING, **options: object) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        await side.step(samples(1, recorded=False), training, **options)  # type: ignore[arg-type]
    return caught.value


async def test_a_version_says_where_its_weights_are_and_how_it_came_to_be(side: Side, peer: TinkerPeer) -> None:
    first, second = [await side.step(samples(n, recorded=False), TRAINING) for n in (1, 2)]
    made = TinkerVersion.read(second.folder)
    assert made.state_path is not None
    assert second.record.state is not None
    assert second.record.state.uri == made.state_path
    assert second.record.weights == made.sampler_path
    assert made.state_path.endswith("/job-2-v2")
    assert made.lineage == (TinkerVersion.read(first.folder).state_path,)
    assert made.step == second.record.metrics["step"] == 2
    step = second.record.step
    assert isinstance(step, RemoteProvenance)
    assert (step.run, step.service_model, step.optimizer_restored) == (made.run, peer.model_name, True)
    assert step.parent_digest == first.record.digest
    assert isinstance(first.record.step, RemoteProvenance)
    assert first.record.step.optimizer_restored is None


async def test_progress_is_told_and_names_no_token(side: Side) -> None:
    await side.step(samples(1, recorded=False), TRAINING)
    assert side.told[:3] == [f"support and teacher of {n} of 3 samples" for n in (1, 2, 3)]
    assert side.told[3:] == ["gradients and update", "distance from the parent", "saving"]


async def test_a_service_that_loses_the_optimiser_is_told_of_and_the_step_is_taken(
    side: Side, peer: TinkerPeer, capsys: pytest.CaptureFixture[str]
) -> None:
    await side.step(samples(1, recorded=False), TRAINING)
    assert "optimizer-not-restored" not in capsys.readouterr().out
    peer.service.restores_optimizer = False
    version = await side.step(samples(2, recorded=False), TRAINING)
    assert version.record.metrics["optimizer_restored"] == 0
    assert isinstance(version.record.step, RemoteProvenance)
    assert version.record.step.optimizer_restored is False
    assert "optimizer-not-restored" in capsys.readouterr().out


async def test_where_too_many_ids_are_asked_for_the_teacher_is_asked_as_a_trainer_with_the_same_result(
    tmp_path: Path, tinker_model: Path
) -> None:
    losses = []
    for cells in (None, 1500, 1):
        with TinkerPeer(tinker_model, limits=SamplingLimits(target_cells=cells)) as peer:
            side = tinker_side(tmp_path / str(cells), tinker_model, peer)
            version = await side.step(samples(1, recorded=False), TRAINING)
            losses.append(version.record.metrics["loss"])
            # The run itself, and one that is never trained.
            assert called(peer, Operation.CREATE_MODEL) == (1 if cells is None else 2)
            assert called(peer, Operation.OPTIM_STEP) == 1
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


async def test_an_earlier_version_gives_the_log_probabilities_of_its_own_answers(side: Side) -> None:
    for number in (1, 2):
        await side.step(samples(number, recorded=False), TrainingConfig(learning_rate=1e-2, max_kl=0))
    old = side.store.read(1)
    batch = tuple(sample.model_copy(update={"version": 1}) for sample in samples(3, recorded=False))
    version = await side.step(batch, TRAINING, {1: old})
    assert version.record.metrics["ratio_max"] > 1.001
    assert version.record.step is not None
    assert version.record.step.answered_by == {1: old.record.digest}


async def test_an_earlier_version_whose_checkpoint_is_gone_can_t_be_used(side: Side, peer: TinkerPeer) -> None:
    for number in (1, 2):
        await side.step(samples(number, recorded=False), TRAINING)
    old = side.store.read(1)
    peer.checkpoints.expire(str(old.record.weights))
    batch = tuple(sample.model_copy(update={"version": 1}) for sample in samples(3, recorded=False))
    parent, engine = side.store.read(2), make_engine(EngineName.TINKER)
    payload = DistillBatchRequestPayload(lora_id="user/coder", training=TRAINING, samples=batch)
    try:
        ready = await engine.prepare(payload, side.task(parent, {1: old}))
        assert ready.unusable == {1}
        response = await engine.distill(payload)
        assert response.lora_id == "user/coder@3"
        assert response.metadata["ratio_max"] == pytest.approx(1.0, rel=1e-6)
    finally:
        await engine.close()


async def test_a_step_that_moves_the_policy_too_far_saves_nothing(side: Side, peer: TinkerPeer) -> None:
    error = await refused(side, TrainingConfig(learning_rate=1e-1, max_kl=0.01))
    assert error.reason is FailureReason.POLICY_MOVED
    assert "max_kl is 0.01" in error.message
    assert called(peer, *SAVES) == 0
    assert called(peer, Operation.FINISH_SESSION) == 1


async def test_a_loss_that_is_not_finite_changes_nothing(
    side: Side, peer: TinkerPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = samples(1, recorded=False)
    logits = peer.model.logits
    monkeypatch.setattr(peer.model, "logits", lambda tokens, lora: logits(tokens, lora) * float("nan"))
    with pytest.raises(TrainerError) as caught:
        await side.step(broken, TRAINING)
    assert caught.value.reason is FailureReason.NOT_FINITE
    assert called(peer, Operation.FORWARD_BACKWARD, Operation.OPTIM_STEP, *SAVES) == 0


async def test_a_gradient_that_is_not_finite_saves_nothing_though_the_service_left_the_weights_as_they_were(
    side: Side, peer: TinkerPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Trainee.run

    def with_norm(self: Trainee, request: TrainRequest) -> tuple[list[Tensor], dict[str, float]]:
        outputs, metrics = run(self, request)
        return outputs, {**metrics, "unclipped_grad_l2:max": math.nan}

    monkeypatch.setattr(Trainee, "run", with_norm)
    error = await refused(side)
    assert error.reason is FailureReason.NOT_FINITE
    assert "gradient's norm is nan" in error.message
    assert called(peer, *SAVES) == 0


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "not-saved"])
@pytest.mark.parametrize(
    ("changed", "batch", "steps"),
    [
        (TRAINING, HINTED, 1),
        (TRAINING.model_copy(update={"alpha": 1.0}), HINTED, 2),
        (TRAINING, tuple(sample.model_copy(update={"teacher_prompt_ids": (7, 8)}) for sample in HINTED), 2),
    ],
    ids=["the-same", "another-alpha", "another-hindsight"],
)
async def test_a_step_of_an_earlier_attempt_is_published_only_as_the_step_that_it_was(
    changed: TrainingConfig,
    batch: tuple[TokenisedSample, ...],
    steps: int,
    saved: bool,
    side: Side,
    peer: TinkerPeer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent, engine = side.store.read(0), make_engine(EngineName.TINKER)
    payload = DistillBatchRequestPayload(lora_id="user/coder", training=TRAINING, samples=HINTED)
    await engine.prepare(payload, side.task(parent))
    if saved:
        await engine.distill(payload)
    else:
        with monkeypatch.context() as patched:
            patched.setattr(RemoteRun, "save", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                await engine.distill(payload)
    await engine.close()
    await side.step(batch, changed)
    assert len([call for call in peer.called(Operation.OPTIM_STEP) if not call.resent]) == steps


@pytest.mark.parametrize("spec", [None, EngineSpec.of(EngineName.LOCAL)], ids=["spec", "execution-mode"])
@pytest.mark.parametrize(
    ("training", "field"),
    [
        (TrainingConfig(teacher=TeacherKind.EMA), "training.teacher"),
        (TrainingConfig(support=SupportKind.FULL), "training.support"),
        (TrainingConfig(teacher_top_k=50), "training.teacher_top_k"),
    ],
)
async def test_settings_that_the_service_can_t_follow_are_refused_before_it_is_asked(
    side: Side, peer: TinkerPeer, training: TrainingConfig, field: str, spec: EngineSpec | None
) -> None:
    side.spec = spec or side.spec
    error = await refused(side, training)
    assert error.reason is FailureReason.INVALID_INPUT
    assert field in error.message
    assert peer.calls == []


async def test_a_k_above_the_service_s_own_limit_names_the_setting(tmp_path: Path, tinker_model: Path) -> None:
    with TinkerPeer(tinker_model, limits=SamplingLimits(topk=5)) as peer:
        error = await refused(tinker_side(tmp_path, tinker_model, peer))
        assert error.reason is FailureReason.INVALID_INPUT
        assert "training.teacher_top_k is 20" in error.message
        assert called(peer, Operation.OPTIM_STEP) == 0


async def test_a_sample_longer_than_the_service_s_context_is_named_before_anything_is_billed(
    side: Side, peer: TinkerPeer
) -> None:
    # The third one is 27 + 2 tokens long, and a token has to be generated.
    peer.model.context_length = 29
    peer.offer(peer.model_name)
    error = await refused(side)
    assert error.reason is FailureReason.INVALID_SAMPLE
    assert error.message.startswith("samples[2] is 29 tokens long")
    assert not {call.operation for call in peer.calls} & (BILLED - {Operation.CAPABILITIES})
