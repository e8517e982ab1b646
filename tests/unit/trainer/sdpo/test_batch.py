"""Samples become packed batches, in groups that depend on their content alone."""

from __future__ import annotations

import hashlib
import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from claas_trainer.sdpo.batch import TokenBatch, TokenSample, digest, micro_batches

CPU = torch.device("cpu")
IDS = st.lists(st.integers(0, 5), min_size=1, max_size=6).map(tuple)
SAMPLES = st.lists(st.builds(TokenSample, IDS, IDS, IDS), min_size=1, max_size=8)


def batch_of(samples: list[TokenSample]) -> TokenBatch:
    return TokenBatch.of([s.student_prompt_ids for s in samples], [s.response_ids for s in samples], CPU)


@settings(max_examples=50, deadline=None)
@given(samples=SAMPLES)
def test_a_packed_batch_is_the_sequences_one_after_the_other_and_knows_where_each_response_is_predicted(
    samples: list[TokenSample],
) -> None:
    batch = batch_of(samples)
    sequences = [(*s.student_prompt_ids, *s.response_ids) for s in samples]
    assert batch.ids.tolist() == [token for sequence in sequences for token in sequence]
    assert batch.lengths == tuple(map(len, sequences))
    assert batch.targets.tolist() == [token for s in samples for token in s.response_ids]
    assert torch.equal(batch.ids[batch.rows + 1], batch.targets)
    assert batch.positions().tolist() == [place for sequence in sequences for place in range(len(sequence))]


@settings(max_examples=50, deadline=None)
@given(samples=SAMPLES)
def test_a_padded_batch_has_the_same_sequences_and_the_same_responses(samples: list[TokenSample]) -> None:
    batch = batch_of(samples)
    ids, rows = batch.padded()
    assert ids.shape == (len(samples), max(batch.lengths))
    for row, sample in zip(ids.tolist(), samples, strict=True):
        sequence = [*sample.student_prompt_ids, *sample.response_ids]
        assert row == sequence + [0] * (len(row) - len(sequence))
    assert torch.equal(ids.flatten()[rows], batch.ids[batch.rows])


@settings(max_examples=100, deadline=None)
@given(samples=SAMPLES, limit=st.integers(1, 60), seed=st.integers(0, 100))
def test_groups_hold_every_sample_once_within_the_limit_in_whatever_order_they_came(
    samples: list[TokenSample], limit: int, seed: int
) -> None:
    groups = list(micro_batches(samples, limit))
    assert sorted(repr(s) for group in groups for s in group) == sorted(map(repr, samples))
    for group in groups:
        assert len(group) == 1 or sum(sample.tokens for sample in group) <= limit
    shuffled = random.Random(seed).sample(samples, len(samples))
    assert list(micro_batches(shuffled, limit)) == groups


def test_a_sample_counts_by_its_longer_prompt() -> None:
    assert TokenSample((1,) * 3, (1,) * 9, (1, 2)).tokens == 11
    assert TokenSample((1,) * 9, (1,) * 3, (1, 2)).tokens == 11


@settings(max_examples=80, deadline=None)
@given(samples=SAMPLES, data=st.data())
def test_a_part_of_a_batch_is_the_batch_of_those_samples_and_knows_where_its_rows_were(
    samples: list[TokenSample], data: st.DataObject
) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, len(samples) - 1), min_size=1)))
    whole = batch_of(samples)
    part, places = whole.part(chosen)
    alone = batch_of([samples[index] for index in chosen])
    assert part.lengths == alone.lengths
    for name in ("ids", "rows", "targets"):
        assert torch.equal(getattr(part, name), getattr(alone, name)), name
    owners = [index for index, sample in enumerate(samples) for _ in sample.response_ids]
    assert [owners[place] for place in places] == [i for i in chosen for _ in samples[i].response_ids]


def test_samples_have_the_digest_that_the_first_versions_recorded_of_them() -> None:
    recorded = "StepSample(student_prompt_ids=(1,), teacher_prompt_ids=(1, 2), response_ids=(3,), old_logprobs=None)"
    assert digest([TokenSample((1,), (1, 2), (3,))]) == hashlib.sha256(recorded.encode()).hexdigest()
