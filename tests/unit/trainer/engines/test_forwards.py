"""One attempt after another through the local engine: which forward computes the step, and what a version keeps."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from claas_contract.engine import DistillBatchRequestPayload, TokenisedSample
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.training import SupportKind, TeacherKind, TrainingConfig
from claas_trainer.attempt.initialise import initialise
from claas_trainer.attempt.run import run
from claas_trainer.engines.access import ServingAccess, WeightAccess
from claas_trainer.engines.base import EngineTask
from claas_trainer.engines.local.decoder_placement import CPU_SCHEDULE
from claas_trainer.engines.local.engine import LocalEngine
from claas_trainer.errors import TrainerError
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths
from claas_trainer.store.record import ForwardKind
from tests.builders.models import build_tiny_qwen3
from tests.unit.trainer.attempts import TRAINING, attempt, job, record, step_record, store
from tests.unit.trainer.tiny_models import build_gemma, build_mistral

WORKER = """
import asyncio, os, sys
from claas_contract.input import TrainerInput
from claas_trainer.paths import Paths
from claas_trainer.messages.events import Reporter
from claas_trainer.attempt.run import run

task = TrainerInput.model_validate_json(sys.argv[1])
asyncio.run(run(task, Paths.from_environment(), Reporter(os.open(os.devnull, os.O_WRONLY))))
heavy = ("peft", "transformers.modeling_utils", "transformers.generation", "torch._dynamo")
print("imported:", [name for name in heavy if name in sys.modules])
"""


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("qwen3"))


def optimiser(paths: Paths, number: int) -> dict[str, torch.Tensor]:
    files = store(paths).read(number).folder.glob("optimizer_*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


async def test_a_qwen3_is_computed_by_the_trainer_s_own_forward_and_the_version_says_how(
    qwen3: Path, paths: Paths, reporter: Reporter
) -> None:
    await attempt(job(qwen3, paths), paths, reporter)
    step = step_record(paths, 1)
    assert step.forward is ForwardKind.DECODER
    assert step.parent_digest == record(paths, 0).digest
    assert step.base_fingerprint.startswith("tensors:")
    assert len(step.samples_digest) == 64
    assert step.device.startswith("CPU, ") != torch.cuda.is_available()
    assert step.compute_dtype == "float32"
    assert (step.micro_batch_tokens, step.tile_rows) == (CPU_SCHEDULE.micro_batch_tokens, CPU_SCHEDULE.tile_rows)
    assert (step.checkpointed_layers, step.serving_residue_bytes) == (0, None)
    assert {"torch", "transformers", "peft", "safetensors"} <= record(paths, 1).libraries.keys()
    assert (record(paths, 1).metrics["micro_batches"], record(paths, 1).metrics["checkpointed_layers"]) == (1, 0)


async def test_peft_reads_the_version_that_the_trainer_s_own_forward_made(
    qwen3: Path, paths: Paths, reporter: Reporter
) -> None:
    await attempt(job(qwen3, paths), paths, reporter)
    before, after = (load_file(store(paths).read(n).folder / "adapter_model.safetensors") for n in (0, 1))
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(qwen3), str(store(paths).read(1).folder))
    found = {name: p for name, p in adapted.named_parameters() if ".lora_" in name}
    assert len(found) == len(after)
    for name, parameter in found.items():
        assert torch.equal(parameter, after[name.replace(".default.", ".")])
    assert any(tensor.any() for name, tensor in after.items() if ".lora_B." in name)


async def test_an_architecture_that_it_does_not_know_is_computed_by_peft(
    tmp_path: Path, paths: Paths, reporter: Reporter, capsys: pytest.CaptureFixture[str]
) -> None:
    gemma = build_gemma(tmp_path / "gemma")
    await attempt(job(gemma, paths), paths, reporter)
    await run(job(gemma, paths, uid="job-2", parent=1), paths, reporter)
    assert step_record(paths, 2).forward is ForwardKind.PEFT
    assert step_record(paths, 2).base_fingerprint.startswith("headers:")
    assert "model_type is gemma" in capsys.readouterr().out


@pytest.mark.parametrize(("window", "forward"), [(16, ForwardKind.PEFT), (1024, ForwardKind.DECODER)])
async def test_a_sliding_window_shorter_than_a_sample_is_left_to_peft(
    window: int, forward: ForwardKind, tmp_path: Path, paths: Paths, reporter: Reporter
) -> None:
    await attempt(job(build_mistral(tmp_path / "mistral", sliding_window=window), paths), paths, reporter)
    assert step_record(paths, 1).forward is forward
    # Of the same model, so that a step may follow a step by the other forward.
    assert step_record(paths, 1).base_fingerprint.startswith("tensors:")


async def test_both_forwards_go_on_from_the_same_state(tmp_path: Path, paths: Paths, reporter: Reporter) -> None:
    """As when one batch has a sample longer than the window, and the next has none."""
    model = build_mistral(tmp_path / "mistral", sliding_window=16)
    await attempt(job(model, paths), paths, reporter)
    config = model / "config.json"
    config.write_text(config.read_text().replace('"sliding_window": 16', '"sliding_window": null'))
    await run(job(model, paths, uid="job-2", parent=1), paths, reporter)
    assert [step_record(paths, number).forward for number in (1, 2)] == [ForwardKind.PEFT, ForwardKind.DECODER]
    assert int(optimiser(paths, 2)["step"]) == 2


@pytest.mark.parametrize("teacher", TeacherKind)
@pytest.mark.parametrize("support", [SupportKind.TOP_K_RENORMALISED, SupportKind.FULL])
async def test_every_teacher_and_support_makes_a_version(
    teacher: TeacherKind, support: SupportKind, qwen3: Path, paths: Paths, reporter: Reporter
) -> None:
    training = TRAINING.model_copy(update={"teacher": teacher, "support": support})
    await attempt(job(qwen3, paths, training=training), paths, reporter)
    assert record(paths, 1).training == training


async def test_an_averaged_teacher_goes_on_from_where_the_last_job_left_it(
    qwen3: Path, paths: Paths, reporter: Reporter
) -> None:
    training = TRAINING.model_copy(update={"teacher": TeacherKind.EMA, "teacher_update_rate": 0.25})
    await attempt(job(qwen3, paths, training=training), paths, reporter)
    await run(job(qwen3, paths, uid="job-2", parent=1, training=training), paths, reporter)
    first, second = optimiser(paths, 1), optimiser(paths, 2)
    averages = [name for name in first if name.startswith("average/")]
    assert len(averages) == len(load_file(store(paths).read(1).folder / "adapter_model.safetensors"))
    for name in averages:
        master = second[name.replace("average/", "master/")]
        torch.testing.assert_close(second[name], torch.lerp(first[name], master, 0.25))
    # A job with another teacher needs no average, and leaves none behind.
    await run(job(qwen3, paths, uid="job-3", parent=2), paths, reporter)
    assert not any(name.startswith("average/") for name in optimiser(paths, 3))


async def test_a_step_that_moves_the_policy_too_far_publishes_nothing(
    qwen3: Path, paths: Paths, reporter: Reporter
) -> None:
    training = TrainingConfig(learning_rate=0.5, teacher_top_k=10, max_kl=1e-3)
    with pytest.raises(TrainerError, match=r"max_kl is 0\.001.*nothing is published") as caught:
        await attempt(job(qwen3, paths, training=training), paths, reporter)
    assert caught.value.reason is FailureReason.POLICY_MOVED
    assert store(paths).numbers() == [0]


async def test_a_base_model_that_was_exchanged_is_refused(
    qwen3: Path, tmp_path: Path, paths: Paths, reporter: Reporter
) -> None:
    await attempt(job(qwen3, paths), paths, reporter)
    other = build_tiny_qwen3(tmp_path / "other", seed=5)
    with pytest.raises(TrainerError, match="another base model") as caught:
        await run(job(other, paths, uid="job-2", parent=1), paths, reporter)
    assert caught.value.reason is FailureReason.INVALID_INPUT
    assert store(paths).numbers() == [0, 1]


@pytest.mark.parametrize("access", list(WeightAccess))
async def test_weights_that_are_no_numbers_are_the_model_s_fault_and_not_the_learning_rate_s(
    access: WeightAccess, tmp_path: Path, paths: Paths, reporter: Reporter
) -> None:
    """Copied weights are looked through when they are read, mapped ones when a step fails on them."""
    model = build_tiny_qwen3(tmp_path / "broken")
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    task = job(model, paths)
    initialise(task, paths, reporter)
    engine_task = EngineTask(model, store(paths).read(0), 1, lambda detail: None, ServingAccess(access))
    sample = TokenisedSample(student_prompt_ids=(1,), teacher_prompt_ids=(1, 2), response_ids=(3,))
    payload = DistillBatchRequestPayload(lora_id="team/coder", training=TRAINING, samples=(sample,))
    engine = LocalEngine()
    with pytest.raises(TrainerError, match=r"model\.safetensors: tensor model\.layers\.1\.mlp\.up_proj") as caught:
        await engine.prepare(payload, engine_task)
    await engine.close()
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND


async def test_weights_that_are_missing_are_the_model_s_fault(
    tmp_path: Path, paths: Paths, reporter: Reporter
) -> None:
    model = build_tiny_qwen3(tmp_path / "broken")
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TrainerError, match="cut short") as caught:
        await attempt(job(model, paths), paths, reporter)
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND


async def test_the_trainer_s_own_forward_needs_neither_peft_nor_transformers_models(
    qwen3: Path, paths: Paths, reporter: Reporter
) -> None:
    """Their import costs a second, with a cold cache many: neither reading the model nor the step brings them in."""
    await attempt(job(qwen3, paths), paths, reporter)
    again = job(qwen3, paths, uid="job-2").model_dump_json(exclude_none=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CLAAS_STORAGE_DIRECTORY": str(paths.storage),
        "CLAAS_SCRATCH_DIRECTORY": str(paths.scratch),
    }
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, again), env=environment, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(120):
        printed, _ = await worker.communicate()
    assert store(paths).numbers() == [0, 1, 2]
    assert printed.decode().splitlines()[-1] == "imported: []"
