"""A step by the Tinker service is the local engine's step: the unmodified SDK against the peer, and PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from claas_crds.v1alpha1.training import SupportKind, TrainingConfig
from claas_trainer.store.versions import StoredVersion
from tests.builders.models import build_tiny_qwen3
from tests.contract.tinker.both_engines import RANK, SEED, adapter_of, local_side, samples, tinker_side
from tests.peers.tinker.model.lora import Lora, LoraShape
from tests.peers.tinker.server import TinkerPeer

pytestmark = pytest.mark.contract

STEPS = 3
TEXT = list(range(30, 90))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("equality") / "model")


@pytest.fixture(scope="module")
def peer(model: Path) -> Iterator[TinkerPeer]:
    with TinkerPeer(model) as peer:
        yield peer


def logprobs(version: StoredVersion, peer: TinkerPeer) -> Tensor:
    """Of the next tokens of a text, under the version's adapter."""
    tensors = adapter_of(version, peer)
    names = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors}
    matrices = {
        name: (
            tensors[f"base_model.model.{name}.lora_A.weight"].float(),
            tensors[f"base_model.model.{name}.lora_B.weight"].float(),
        )
        for name in names
    }
    with torch.no_grad():
        return peer.model.logits(TEXT, Lora(LoraShape(RANK, SEED), matrices)).log_softmax(-1)


@pytest.mark.parametrize("recorded", [False, True], ids=["unrecorded", "clipped"])
@pytest.mark.parametrize("kl_reg_weight", [0.0, 0.4])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
async def test_three_steps_in_three_sessions_are_those_of_the_local_engine(
    tmp_path: Path, model: Path, peer: TinkerPeer, alpha: float, kl_reg_weight: float, recorded: bool
) -> None:
    training = TrainingConfig(
        learning_rate=3e-4,
        alpha=alpha,
        kl_reg_weight=kl_reg_weight,
        is_clip=1.5,
        teacher_top_k=20,
        max_grad_norm=0.05,
    )
    local, tinker = local_side(tmp_path / "local", model, peer), tinker_side(tmp_path / "tinker", model, peer)
    for number in range(1, STEPS + 1):
        batch = samples(number, recorded=recorded)
        ours, theirs = await local.step(batch, training), await tinker.step(batch, training)
        expected, found = ours.record.metrics, theirs.record.metrics
        for name in ("loss", "divergence", "ratio_mean", "ratio_max", "clipped_fraction", "samples", "tokens"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-9), name
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert found["grad_norm"] > training.max_grad_norm
        assert ("kl_to_base" in found) == ("kl_to_base" in expected) == (kl_reg_weight > 0)
        if kl_reg_weight:
            assert found["kl_to_base"] == pytest.approx(expected["kl_to_base"], rel=1e-4, abs=1e-7)
        assert (found["clipped_fraction"] > 0) == recorded
        # Support and tail tell a part of what the whole vocabulary does.
        assert 0 < found["kl_to_parent"] <= expected["kl_to_parent"] * 1.01
        assert found["step"] == number
        assert found.get("optimizer_restored") == (1.0 if number > 1 else None)
        torch.testing.assert_close(logprobs(theirs, peer), logprobs(ours, peer), rtol=0, atol=1e-4)


async def test_the_renormalised_support_is_exact_too(tmp_path: Path, model: Path, peer: TinkerPeer) -> None:
    training = TrainingConfig(learning_rate=3e-4, teacher_top_k=20, support=SupportKind.TOP_K_RENORMALISED)
    local, tinker = local_side(tmp_path / "local", model, peer), tinker_side(tmp_path / "tinker", model, peer)
    batch = samples(1, recorded=True)
    ours, theirs = await local.step(batch, training), await tinker.step(batch, training)
    assert theirs.record.metrics["loss"] == pytest.approx(ours.record.metrics["loss"], rel=1e-5)
    torch.testing.assert_close(logprobs(theirs, peer), logprobs(ours, peer), rtol=0, atol=1e-4)
