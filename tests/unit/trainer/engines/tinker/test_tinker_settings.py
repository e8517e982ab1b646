"""Settings as the Tinker service takes them, and its limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from claas_contract.engine import TokenisedSample
from claas_contract.engine_refusals import TINKER_TOP_K
from claas_contract.input import AdapterIdentity
from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.engine import EngineSpec, TinkerEngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.training import TrainingConfig
from claas_trainer.engines.base import RemoteTask
from claas_trainer.engines.tinker.optimizer_check import change_shows
from claas_trainer.engines.tinker.settings import adam_params, check_length, service_model, step_config
from claas_trainer.errors import InputError
from claas_trainer.sdpo.errors import InvalidBatchError
from claas_trainer.sdpo.settings import SdpoConfig
from claas_trainer.store.journal import RunJournal


def remote(base_model: str, named: str | None = None) -> RemoteTask:
    spec = EngineSpec(tinker=TinkerEngineSpec(base_model=named))
    job = JobIdentity(namespace="team", name="job", uid="uid", attempt=1)
    nowhere = Path("/nowhere")
    adapter = AdapterIdentity(namespace="team", name="tone", uid="uid", lora_id="team/tone")
    journal = RunJournal(nowhere, "uid")
    return RemoteTask(spec, LoraSpec(), base_model, journal, job, nowhere / "key", nowhere, adapter)


def test_the_update_is_the_local_engine_s() -> None:
    training = TrainingConfig(learning_rate=2e-4, weight_decay=0.02, max_grad_norm=0.7)
    adam, ours = adam_params(step_config(training)), SdpoConfig()
    assert (adam.learning_rate, adam.weight_decay, adam.grad_clip_norm) == (2e-4, 0.02, 0.7)
    assert (adam.beta1, adam.beta2, adam.eps) == (ours.beta1, ours.beta2, ours.epsilon)


def test_a_norm_of_0_means_no_clipping_on_both_sides() -> None:
    assert adam_params(step_config(TrainingConfig(max_grad_norm=0))).grad_clip_norm == 0


@pytest.mark.parametrize(("chosen", "k"), [(None, TINKER_TOP_K), (12, 12)])
def test_k_is_what_the_service_allows_unless_it_is_chosen(chosen: int | None, k: int) -> None:
    assert step_config(TrainingConfig(teacher_top_k=chosen)).teacher_top_k == k


def test_the_service_s_name_of_the_base_model_may_differ_from_ours() -> None:
    assert service_model(remote("Qwen/Qwen3-8B")) == "Qwen/Qwen3-8B"
    assert service_model(remote("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-long")) == "Qwen/Qwen3-8B-long"
    for unknown in ("", "/models/mine"):
        with pytest.raises(InputError, match=r"spec\.engine\.tinker\.baseModel"):
            service_model(remote(unknown))


def test_a_sample_may_fill_the_context_but_for_the_token_that_has_to_be_generated() -> None:
    fits = TokenisedSample(student_prompt_ids=(1,), teacher_prompt_ids=(1, 2, 3), response_ids=(4, 5))
    check_length([fits, fits], 6)
    check_length([fits], None)
    with pytest.raises(InvalidBatchError, match=r"samples\[1\] is 6 tokens"):
        check_length([fits, fits.model_copy(update={"teacher_prompt_ids": (1, 2, 3, 4)})], 6)


@pytest.mark.parametrize(
    ("second", "after", "shows"),
    [
        (0.0, 0.5, True),
        (0.0, 0.0, False),
        # Rounding is no change, and of a service that answers a little differently each time more is asked.
        (0.0, 1e-5, False),
        (0.02, 0.1, False),
        (0.02, 0.5, True),
    ],
)
def test_a_restored_optimiser_shows_beyond_the_service_s_noise(second: float, after: float, shows: bool) -> None:
    first = torch.full((4,), -2.0)
    change = torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert change_shows(first, first + second * change, first + after * change) is shows
