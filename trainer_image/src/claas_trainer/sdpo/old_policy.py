"""Log-probabilities that were not recorded, computed under the version that sampled the response.

The importance ratio compares the adapter before the step with the policy that answered. Where only the response's
tokens and its version are known, that version's adapter gives the old log-probabilities, by the same forward as the
step's own. One version's adapter is on the device at a time, before the step's, so memory does not grow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from claas_trainer.sdpo.batch import TokenBatch, TokenSample, check_samples, micro_batches
from claas_trainer.sdpo.errors import NonFiniteError
from claas_trainer.sdpo.fitting import until_it_fits
from claas_trainer.sdpo.policy import Network, PolicyModel
from claas_trainer.sdpo.scoring import response_logprobs
from claas_trainer.sdpo.settings import Schedule

OLD_VECTORS = 2
"""Vectors in host memory: the one that is being used, and the next."""


def with_old_logprobs(
    model: PolicyModel,
    samples: Sequence[TokenSample],
    adapters: Mapping[int, Mapping[str, Tensor]],
    schedule: Schedule,
    on_micro_batch: Callable[[int, int], None],
) -> tuple[tuple[TokenSample, ...], Schedule]:
    """The samples, in their order, with the log-probabilities that were not recorded; and the schedule that fits
    memory.

    `adapters`: the tensors of each version that samples name, by published name. `on_micro_batch` is called before
    each forward pass, with its number from 1 and their count. Afterwards the model holds no adapter.

    Raises:
        InvalidBatchError: a sample is invalid. NonFiniteError: a version's log-probabilities are not finite.
        torch.OutOfMemoryError: even the smallest piece does not fit.
    """
    check_samples(samples, model.vocabulary_size)
    waiting = [sample for sample in samples if sample.waits_for_logprobs]
    if not waiting:
        return tuple(samples), schedule

    def work(schedule: Schedule) -> dict[TokenSample, Tensor]:
        return _computed(model, waiting, adapters, schedule, on_micro_batch)

    try:
        found, schedule = until_it_fits(work, schedule)
        return tuple(_filled(sample, found) if sample.waits_for_logprobs else sample for sample in samples), schedule
    finally:
        model.clear()


def _computed(
    model: PolicyModel,
    samples: Sequence[TokenSample],
    adapters: Mapping[int, Mapping[str, Tensor]],
    schedule: Schedule,
    on_micro_batch: Callable[[int, int], None],
) -> dict[TokenSample, Tensor]:
    groups = [
        (version, group)
        for version in sorted(adapters)
        for group in micro_batches([s for s in samples if s.version == version], schedule.micro_batch_tokens)
    ]
    found: dict[TokenSample, Tensor] = {}
    placed: int | None = None
    for number, (version, group) in enumerate(groups, start=1):
        on_micro_batch(number, len(groups))
        if version != placed:
            model.clear()
            model.place(model.layout.gather(adapters[version], pin=model.device.type == "cuda"))
            model.refresh()
            placed = version
        prompts, responses = [s.student_prompt_ids for s in group], [s.response_ids for s in group]
        batch = TokenBatch.of(prompts, responses, model.device)
        features = model.features(batch, Network.STUDENT)
        each = response_logprobs(model, features, batch.targets, schedule.tile_rows)
        found.update(zip(group, torch.split(each, [len(response) for response in responses]), strict=True))
    return found


def _filled(sample: TokenSample, found: Mapping[TokenSample, Tensor]) -> TokenSample:
    # Rounding may put a value slightly above 0.
    values: tuple[float, ...] = tuple(found[sample].clamp(max=0.0).tolist())
    if not all(map(math.isfinite, values)):
        raise NonFiniteError(
            f"log-probabilities under version {sample.version} are NaN or infinite; leave out its samples' version"
        )
    return replace(sample, old_logprobs=values)
