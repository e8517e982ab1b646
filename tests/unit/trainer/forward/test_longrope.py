"""LongRoPE has other frequencies for long sequences: a sample is computed with its own, whoever stands beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from claas_trainer.forward.peft_model import alike, attached, load_base, rope_limits
from claas_trainer.model.lora import AdapterWeights
from claas_trainer.sdpo.batch import TokenBatch, TokenSample
from claas_trainer.sdpo.policy import Network
from claas_trainer.sdpo.settings import Schedule, SdpoConfig
from tests.unit.trainer.core.models import CPU, gradient, learned, off, peft_way, step
from tests.unit.trainer.model.test_targets import build

ORIGINAL = 16
SAMPLES = [
    TokenSample((5, 6, 7), (5, 6, 8), (10, 11, 12, 13)),
    TokenSample(tuple(range(20, 50)), tuple(range(20, 52)), tuple(range(30, 38))),
    TokenSample((7, 8), (7, 9), tuple(range(60, 60 + ORIGINAL - 2))),
    TokenSample((7, 8), (7, 9), tuple(range(60, 60 + ORIGINAL - 1))),
    # The hint takes the teacher's side over the limit.
    TokenSample((5, 6, 7), tuple(range(5, 25)), (10, 11, 12)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [4.0, 9.0, 16.0, 25.0],
        "original_max_position_embeddings": ORIGINAL,
        "rope_theta": 100.0,
    }
    return build(
        "phi3",
        tmp_path_factory.mktemp("longrope"),
        rope_parameters=rope,
        original_max_position_embeddings=ORIGINAL,
        initializer_range=0.3,
    )


@pytest.fixture
def base(folder: Path) -> PreTrainedModel:
    return load_base(folder)


@pytest.fixture
def adapter(folder: Path) -> AdapterWeights:
    return learned(folder)


def batch_of(samples: list[TokenSample]) -> TokenBatch:
    return TokenBatch.of([s.student_prompt_ids for s in samples], [s.response_ids for s in samples], CPU)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [1, 0, 3, 2, 4], [4, 3, 2, 1, 0], [0, 2]])
def test_a_sample_s_logits_are_the_same_alone_and_beside_longer_ones(
    order: list[int], base: PreTrainedModel, adapter: AdapterWeights
) -> None:
    samples = [SAMPLES[index] for index in order]
    with attached(base, adapter) as model:
        together = model.features(batch_of(samples), Network.BASE)
        alone = torch.cat([model.features(batch_of([sample]), Network.BASE) for sample in samples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_limit_matters_to_this_model(base: PreTrainedModel) -> None:
    """Else the other tests could not fail."""
    assert rope_limits(base.config) == (ORIGINAL,)
    ids = torch.tensor([list(range(20, 20 + ORIGINAL + 1))])
    with torch.no_grad():
        short, long = base(input_ids=ids[:, :-1]).logits[0], base(input_ids=ids).logits[0, :-1]
    assert (short - long).abs().max() > 0.01


def test_a_step_s_loss_and_gradient_do_not_depend_on_the_micro_batches(
    base: PreTrainedModel, adapter: AdapterWeights
) -> None:
    config = SdpoConfig(learning_rate=1e-3, teacher_top_k=10, max_grad_norm=0, kl_reg_weight=0.1)
    one_by_one, at_once = (
        step(peft_way(base), adapter, SAMPLES, config, schedule=Schedule(tokens, 100)) for tokens in (1, 10_000)
    )
    assert at_once.metrics.micro_batches == 1
    assert at_once.metrics.loss == pytest.approx(one_by_one.metrics.loss, rel=1e-4)
    assert off(gradient(at_once, config), gradient(one_by_one, config)) < 1e-4


@pytest.mark.parametrize(
    ("lengths", "limits", "groups"),
    [
        ([5, 50, 7], (), [[0, 1, 2]]),
        ([5, 50, 7], (10,), [[0, 2], [1]]),
        ([10, 11], (10,), [[0], [1]]),
        ([5, 15, 25, 6], (10, 20), [[0, 3], [1], [2]]),
        ([50, 60], (10,), [[0, 1]]),
    ],
)
def test_sequences_on_the_same_side_of_every_limit_are_computed_together(
    lengths: list[int], limits: tuple[int, ...], groups: list[list[int]]
) -> None:
    assert alike(lengths, limits) == groups
