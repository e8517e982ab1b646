"""Old log-probabilities under the version that answered: a step with them is the step with recorded ones."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from claas_trainer.forward.peft_model import attached
from claas_trainer.model.lora import AdapterWeights
from claas_trainer.sdpo.batch import TokenBatch, TokenSample, digest
from claas_trainer.sdpo.errors import InvalidBatchError, NonFiniteError
from claas_trainer.sdpo.old_policy import with_old_logprobs
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.policy import Network, PolicyModel
from claas_trainer.sdpo.settings import Schedule, SdpoConfig
from claas_trainer.sdpo.step import SdpoResult, sdpo_step
from tests.unit.trainer.core.models import VOCABULARY, Way, gradient, masters, off
from tests.unit.trainer.core.watched import Scarce, Watched

CONFIG = SdpoConfig(learning_rate=1e-3, teacher_top_k=10, max_grad_norm=0, is_clip=3.0)
WIDE = Schedule(10_000, 10_000)
VERSIONS = (3, 5)


def varied(adapter: AdapterWeights, seed: int) -> AdapterWeights:
    """The adapter as another version had it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in adapter.tensors.items()
    }
    return AdapterWeights(adapter.shape, tensors)


def earlier(adapter: AdapterWeights) -> dict[int, AdapterWeights]:
    return {version: varied(adapter, version) for version in VERSIONS}


def answered(samples: Sequence[TokenSample]) -> list[TokenSample]:
    """Of three samples, two were answered by earlier versions and have no log-probabilities."""
    return [
        sample if index % 3 == 2 else dataclasses.replace(sample, old_logprobs=None, version=VERSIONS[index % 3])
        for index, sample in enumerate(samples)
    ]


def plain_logprobs(base: PreTrainedModel, adapter: AdapterWeights, sample: TokenSample) -> tuple[float, ...]:
    """One sequence alone, the formula as it is read, in double precision after the model."""
    prompt, response = sample.student_prompt_ids, sample.response_ids
    with attached(base, adapter) as model, torch.no_grad():
        logits = model.peft(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    rows: Tensor = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
    return tuple(rows[range(len(response)), response].tolist())


def recorded(
    base: PreTrainedModel, adapters: Mapping[int, AdapterWeights], samples: Sequence[TokenSample]
) -> list[TokenSample]:
    """The same samples, had their log-probabilities been recorded."""
    return [
        sample
        if sample.version is None
        else dataclasses.replace(
            sample, old_logprobs=plain_logprobs(base, adapters[sample.version], sample), version=None
        )
        for sample in samples
    ]


def computed(
    model: PolicyModel,
    adapters: Mapping[int, AdapterWeights],
    samples: Sequence[TokenSample],
    schedule: Schedule = WIDE,
) -> tuple[TokenSample, ...]:
    tensors = {version: adapter.tensors for version, adapter in adapters.items()}
    return with_old_logprobs(model, samples, tensors, schedule, lambda number, count: None)[0]


def stepped(
    model: PolicyModel, adapter: AdapterWeights, samples: Sequence[TokenSample], schedule: Schedule = WIDE
) -> SdpoResult:
    state = OptimizerState.fresh(adapter.tensors, model.layout)
    return sdpo_step(model, samples, CONFIG, state, schedule=schedule)


def test_a_step_with_computed_log_probabilities_is_the_step_with_recorded_ones(
    way: Way, base: PreTrainedModel, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    adapters, batch = earlier(adapter), answered(samples)
    expected_samples = recorded(base, adapters, batch)
    with way(adapter) as model:
        found_samples = computed(model, adapters, batch)
        found = stepped(model, adapter, found_samples)
        expected = stepped(model, adapter, expected_samples)
    for one, other in zip(found_samples, expected_samples, strict=True):
        assert one.old_logprobs == pytest.approx(other.old_logprobs, abs=1e-5)
    assert off(gradient(found, CONFIG), gradient(expected, CONFIG)) < 1e-5
    assert off(masters(found), masters(expected)) < 1e-5
    for name in ("loss", "divergence", "grad_norm", "ratio_mean", "ratio_max", "clipped_fraction", "kl_to_parent"):
        assert getattr(found.metrics, name) == pytest.approx(getattr(expected.metrics, name), rel=1e-4), name
    assert found.metrics.ratio_max > 1.05, "the ratio is a real one"


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 5),
    micro_batch=st.integers(1, 80),
    tile=st.integers(1, 9),
    name=st.sampled_from(["peft", "decoder"]),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_log_probabilities_of_any_batch_are_those_of_each_sample_alone(
    ways: dict[str, Way],
    base: PreTrainedModel,
    adapter: AdapterWeights,
    seed: int,
    count: int,
    micro_batch: int,
    tile: int,
    name: str,
) -> None:
    rng = random.Random(seed)

    def ids() -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 12)))

    batch = [TokenSample(ids(), ids(), ids(), version=rng.choice(VERSIONS)) for _ in range(count)]
    adapters = earlier(adapter)
    with ways[name](adapter) as model:
        found = computed(model, adapters, batch, Schedule(micro_batch, tile))
    for one, sample in zip(found, batch, strict=True):
        assert sample.version is not None
        assert one == dataclasses.replace(sample, old_logprobs=one.old_logprobs)
        assert one.old_logprobs == pytest.approx(plain_logprobs(base, adapters[sample.version], sample), abs=1e-4)


def test_afterwards_the_student_has_its_own_weights_to_the_last_bit(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    batch = answered(samples)
    with way(adapter) as model:
        filled = computed(model, earlier(adapter), batch)
        found = stepped(model, adapter, filled)
    with way(adapter) as untouched:
        expected = stepped(untouched, adapter, filled)
    assert torch.equal(masters(found), masters(expected))
    assert found.metrics == expected.metrics


def test_a_forward_for_each_version_s_samples_and_none_for_others(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    batch = answered(samples)
    told: list[tuple[int, int]] = []
    tensors = {version: each.tensors for version, each in earlier(adapter).items()}
    with way(adapter) as model:
        watched = Watched(model)
        filled, _ = with_old_logprobs(watched, batch, tensors, WIDE, lambda *place: told.append(place))
        assert watched.forwards == [Network.STUDENT.value] * len(VERSIONS)
        assert watched.cleared
        assert [sample for sample in filled if sample.version is None] == [s for s in batch if s.version is None]
        watched.forwards.clear()
        assert with_old_logprobs(watched, filled, tensors, WIDE, lambda *place: None)[0] == filled
    assert watched.forwards == []
    assert told == [(1, 2), (2, 2)]


def test_the_order_of_the_samples_changes_not_a_bit_of_their_log_probabilities(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    batch = answered(samples)
    shuffled = random.Random(1).sample(batch, len(batch))
    with way(adapter) as model:
        one = computed(model, earlier(adapter), batch, Schedule(40, 3))
        other = computed(model, earlier(adapter), shuffled, Schedule(40, 3))
    assert dict(zip(batch, one, strict=True)) == dict(zip(shuffled, other, strict=True))


class ScarceFeatures(Watched):
    """Memory that runs out the first times."""

    def __init__(self, model: PolicyModel, times: int) -> None:
        super().__init__(model)
        self._scarce = Scarce(times)

    def features(self, batch: TokenBatch, network: Network) -> Tensor:
        self._scarce(batch)
        return super().features(batch, network)


def test_where_memory_runs_out_they_are_computed_in_smaller_pieces(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    batch = answered(samples)
    tensors = {version: each.tensors for version, each in earlier(adapter).items()}
    with way(adapter) as model:
        usual = computed(model, earlier(adapter), batch)
        filled, schedule = with_old_logprobs(
            ScarceFeatures(model, 2), batch, tensors, Schedule(400, 40), lambda number, count: None
        )
    assert schedule == Schedule(100, 10)
    for one, other in zip(filled, usual, strict=True):
        assert one.old_logprobs == (
            None if other.old_logprobs is None else pytest.approx(other.old_logprobs, abs=1e-5)
        )


def test_a_version_that_gives_no_number_is_named(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in adapter.tensors.items()}
    batch = [dataclasses.replace(samples[0], version=9)]
    with way(adapter) as model, pytest.raises(NonFiniteError, match="under version 9"):
        computed(model, {9: AdapterWeights(adapter.shape, broken)}, batch)


def test_a_step_never_takes_a_ratio_of_one_for_a_sample_whose_version_is_known(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    with way(adapter) as model, pytest.raises(InvalidBatchError, match=r"samples\[0\].old_logprobs"):
        stepped(model, adapter, answered(samples))


def test_the_digest_of_samples_tells_versions_apart_and_stays_as_it_was_without() -> None:
    plain = TokenSample((1,), (1, 2), (3,))
    digests = {digest([dataclasses.replace(plain, version=version)]) for version in (None, 3, 5)}
    assert len(digests) == 3
    of_log_probabilities = dataclasses.replace(plain, old_logprobs=(-1.0,))
    assert digest([of_log_probabilities]) == digest([dataclasses.replace(of_log_probabilities, version=3)])
