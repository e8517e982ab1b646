"""How a step is cut to fit a GPU beside a sleeping vLLM: plain arithmetic on figures of made-up cards."""

from __future__ import annotations

import pytest

from claas_contract.outcome import FailureReason
from claas_trainer.engines.local.decoder_placement import planned
from claas_trainer.engines.local.gpu_memory import CONTEXT_BYTES, GIB, USUAL_RESIDUE_BYTES, Budget, GpuMemory
from claas_trainer.engines.local.placement import SdpoInput
from claas_trainer.errors import TrainerError
from claas_trainer.forward.transformer.plan import Footprint
from claas_trainer.model.shape import ModelShape, Rope
from claas_trainer.sdpo.batch import TokenSample
from claas_trainer.sdpo.settings import SdpoConfig
from claas_trainer.sdpo.teachers.frozen import FrozenTeacher

EIGHT_BILLION = ModelShape("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, Rope.plain(1e6, 128), qk_norm=True)
WEIGHTS_BYTES = 15 * GIB
FOOTPRINT = Footprint(EIGHT_BILLION, 2, WEIGHTS_BYTES, 87_000_000, 32)


def inputs(count: int = 16, tokens: int = 512) -> SdpoInput:
    sample = TokenSample((1,) * tokens, (1,) * tokens, (1,) * tokens)
    return SdpoInput((sample,) * count, SdpoConfig(), FrozenTeacher())


def test_the_budget_is_the_card_less_what_serving_keeps_and_cuda_takes() -> None:
    assert Budget(80 * GIB).bytes == 80 * GIB - USUAL_RESIDUE_BYTES - CONTEXT_BYTES
    assert Budget(80 * GIB, 5 * GIB).bytes == 75 * GIB - CONTEXT_BYTES
    assert Budget(2 * GIB).bytes == 0


def test_what_this_process_holds_is_no_residue_of_others() -> None:
    taken = 3 * GIB + CONTEXT_BYTES + GIB
    found = GpuMemory(total=80 * GIB, free=80 * GIB - taken, reserved=GIB, allocated=GIB // 4)
    assert found.residue == 3 * GIB
    assert found.available == 80 * GIB - taken + GIB - GIB // 4
    assert GpuMemory(total=80 * GIB, free=80 * GIB).residue == 0


def test_the_residue_that_was_seen_is_what_the_next_step_has_less() -> None:
    """Whatever CUDA really takes for this process: what the constant is off by is in the residue."""
    seen = GpuMemory(total=24 * GIB, free=20 * GIB)
    assert Budget(seen.total, seen.residue).bytes == seen.available


@pytest.mark.parametrize("card", [24 * GIB, 40 * GIB, 80 * GIB])
def test_a_plan_stays_within_the_budget_of_its_card(card: int) -> None:
    budget = Budget(card)
    assert planned(FOOTPRINT, inputs(), budget).peak_bytes <= budget.bytes


def test_a_larger_card_spares_what_a_smaller_one_computes_twice() -> None:
    small, large = (planned(FOOTPRINT, inputs(), Budget(card * GIB)) for card in (22, 80))
    assert small.checkpointed_layers > 0
    assert large.checkpointed_layers == 0
    assert large.schedule.micro_batch_tokens > small.schedule.micro_batch_tokens


def test_a_residue_makes_a_plan_smaller() -> None:
    usual, tight = (planned(FOOTPRINT, inputs(), Budget(24 * GIB, residue)) for residue in (None, 5 * GIB))
    assert tight.peak_bytes <= 19 * GIB - CONTEXT_BYTES
    assert tight.peak_bytes < usual.peak_bytes


def test_a_card_on_which_not_even_the_smallest_plan_fits_is_named_with_figures_and_a_way_out() -> None:
    with pytest.raises(TrainerError) as caught:
        planned(FOOTPRINT, inputs(tokens=2000), Budget(16 * GIB))
    assert caught.value.reason is FailureReason.OUT_OF_MEMORY
    assert "16.0 GiB in all" in caught.value.message
    assert "2.4 GiB stay with vLLM" in caught.value.message
    assert "shorten the longest sample (4000 tokens)" in caught.value.message


def test_on_a_large_card_a_micro_batch_is_no_larger_than_what_fills_it() -> None:
    """Sixteen samples of 1,024 tokens at once would take 73 GB and be no quicker than eight."""
    plan = planned(FOOTPRINT, inputs(), Budget(140 * GIB))
    assert plan.schedule.micro_batch_tokens == 8 * 1024
    assert plan.checkpointed_layers == 0
    longer = planned(FOOTPRINT, inputs(count=2, tokens=8000), Budget(140 * GIB))
    assert longer.schedule.micro_batch_tokens == 16_000
