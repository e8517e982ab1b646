"""How far a step moved the policy: some response tokens of every sample are looked at, in little time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from claas_trainer.forward.peft_model import attached
from claas_trainer.model.lora import AdapterWeights
from claas_trainer.sdpo.batch import TokenBatch, TokenSample, micro_batches, ordered
from claas_trainer.sdpo.distance import Distance, windows
from claas_trainer.sdpo.parameters import AdapterParameters
from claas_trainer.sdpo.policy import Network, PolicyModel, StudentPass
from claas_trainer.sdpo.settings import Schedule, SdpoConfig
from tests.unit.trainer.core.models import CPU, Way, step

CONFIG = SdpoConfig(learning_rate=1e-2, teacher_top_k=10, max_grad_norm=0)
LENGTHS = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=40)


def of_lengths(lengths: list[tuple[int, int]]) -> list[TokenSample]:
    """Samples of so many prompt and response tokens; each token says which sample it is of, and where."""
    return [
        TokenSample(
            tuple(1000 * index + place for place in range(prompt)),
            (0,),
            tuple(1000 * index + 1_000_000 + place for place in range(response)),
        )
        for index, (prompt, response) in enumerate(lengths)
    ]


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
@example([(5, 3)])
@example([(500, 1)] * 200)
@example([(4000, 4000)])
def test_every_sample_is_looked_at_and_few_tokens_go_through_a_forward_for_it(
    lengths: list[tuple[int, int]],
) -> None:
    samples = ordered(of_lengths(lengths))
    found = windows(samples)
    assert {window.sample for window in found} == set(range(len(samples)))
    for window in found:
        sample = samples[window.sample]
        whole = sample.student_prompt_ids + sample.response_ids
        start = whole.index(window.response[0])
        assert start >= len(sample.student_prompt_ids)
        assert window.response == whole[start : start + len(window.response)]
        near = window.context if window.context == whole[:start] else window.context[4:]
        assert near == whole[start - len(near) : start]
        assert window.context[:4] == whole[:start][:4]
        assert window.whole == (window.response == sample.response_ids and near == sample.student_prompt_ids)
    # Those of windows that are not whole are made twice: before the update, and after it.
    forwards = sum(window.tokens * (1 if window.whole else 2) for window in found)
    middle = samples[(len(samples) - 1) // 2]
    usual = len(middle.student_prompt_ids) + min(128, len(middle.response_ids))
    assert forwards <= max(usual, sum(map(sum, lengths)) // 12, 32 * len(samples), 1024)


def test_one_sample_of_a_thousand_tokens_is_looked_at_whole() -> None:
    (window,) = windows(of_lengths([(512, 512)]))
    assert window.whole


@pytest.mark.parametrize("count", [1, 3, 20])
def test_the_windows_are_spread_over_the_responses(count: int) -> None:
    response = 900
    found = windows(ordered(of_lengths([(300, response)] * count)))
    starts = sorted((window.response[0] % 1000) / response for window in found)
    assert starts[0] < 0.3
    assert starts[-1] > 0.6
    assert max(later - earlier for earlier, later in pairwise(starts)) < 0.4


class Bigrams(PolicyModel):
    """A policy that looks at the last token alone; `table`, [V, V], has its logits."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.device = CPU
        self.vocabulary_size = len(table)

    def features(self, batch: TokenBatch, network: Network) -> Tensor:
        return self.table[batch.ids[batch.rows]]

    def logits(self, features: Tensor) -> Tensor:
        return features.clone()

    def place(self, masters: Tensor) -> AdapterParameters:
        raise NotImplementedError

    def clear(self) -> None:
        raise NotImplementedError

    def refresh(self, average: Tensor | None = None) -> None:
        raise NotImplementedError

    def student(self, batch: TokenBatch) -> StudentPass:
        raise NotImplementedError

    def features_gradient(self, gradient: Tensor) -> Tensor:
        raise NotImplementedError


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=20),
    st.data(),
    st.sampled_from([64, 1000]),
)
def test_a_move_in_any_single_sample_is_seen(
    lengths: list[tuple[int, int]], data: st.DataObject, most_tokens: int
) -> None:
    """Each sample has a token of its own, after which the policy moves or does not."""
    moving = data.draw(st.integers(0, len(lengths) - 1))
    samples = [TokenSample((i,) * prompt, (i,), (i,) * response) for i, (prompt, response) in enumerate(lengths)]
    model = Bigrams(torch.randn(len(lengths), 20, generator=torch.Generator().manual_seed(0)).double())
    distance = Distance(model, samples, most_tokens, 7)
    for group in micro_batches(samples, 500):
        responses = [sample.response_ids for sample in group]
        batch = TokenBatch.of([sample.student_prompt_ids for sample in group], responses, CPU)
        distance.tell(group, model.features(batch, Network.STUDENT))
    distance.ready()
    assert distance.moved() == (0, 0)
    before = model.table[moving].log_softmax(-1)
    model.table = model.table.clone()
    model.table[moving] += torch.arange(20) / 10
    after = model.table[moving].log_softmax(-1)
    moved = (before.exp() * (before - after)).sum().item()
    share = lengths[moving][1] / sum(response for _, response in lengths)
    assert list(distance.moved()) == pytest.approx([share * moved, moved])


def test_on_short_samples_it_is_the_exact_kl_over_all_response_tokens(
    way: Way, base: PreTrainedModel, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    result = step(way, adapter, samples, CONFIG, schedule=Schedule(micro_batch_tokens=40, tile_rows=3))
    each: list[list[Tensor]] = []
    for tensors in (adapter.tensors, result.state.masters):
        with torch.no_grad(), attached(base, AdapterWeights(adapter.shape, tensors)) as model:
            each.append([])
            for sample in samples:
                ids = torch.tensor([[*sample.student_prompt_ids, *sample.response_ids]])
                rows = model.peft(input_ids=ids).logits[0, len(sample.student_prompt_ids) - 1 : -1]
                each[-1].append(rows.double().log_softmax(-1))
    moved = [(b.exp() * (b - a)).sum(-1) for b, a in zip(*each, strict=True)]
    assert result.metrics.kl_to_parent == pytest.approx(torch.cat(moved).mean().item(), rel=1e-3)
    assert result.metrics.kl_to_parent_max == pytest.approx(max(m.mean().item() for m in moved), rel=1e-3)
