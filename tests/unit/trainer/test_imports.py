"""What a step imports: torch alone, so that it can be measured on any machine; and nothing late, which would cost
seconds in every trainer."""

from __future__ import annotations

import subprocess
import sys

import pytest

CORE = (
    "claas_trainer.sdpo.step",
    "claas_trainer.sdpo.batch",
    "claas_trainer.sdpo.distance",
    "claas_trainer.sdpo.optimizer",
    "claas_trainer.sdpo.policy",
    "claas_trainer.sdpo.scoring",
    "claas_trainer.sdpo.losses.sdpo",
    "claas_trainer.sdpo.losses.support",
    "claas_trainer.sdpo.teachers.average",
    "claas_trainer.sdpo.teachers.frozen",
    "claas_trainer.samples.hindsight",
    "claas_trainer.sdpo.teachers.trust_region",
    "claas_trainer.forward.transformer.model",
    "claas_trainer.forward.weights.host",
    "claas_trainer.model.shape",
    "claas_trainer.forward.weights.source",
)
FOREIGN = {"transformers", "peft", "pydantic", "claas_crds", "kubernetes", "safetensors", "httpx", "vllm"}


FIRST_STEP = """
import sys, torch
from claas_trainer.sdpo.batch import TokenSample
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.settings import SdpoConfig
from claas_trainer.sdpo.step import sdpo_step
from claas_trainer.forward.transformer.adapters import adapter_shapes
from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.weights.random import RandomWeights
from claas_trainer.model.shape import ModelShape, Rope

shape = ModelShape("qwen3", 64, 32, 64, 2, 4, 2, 8, Rope.plain(1e4, 8), qk_norm=True)
tensors = adapter_shapes(shape, 4)
model = DecoderModel(RandomWeights(shape, torch.device("cpu")), tensors, 4, 8.0)
state = OptimizerState.fresh({name: torch.full(size, 0.01) for name, size in tensors.items()}, model.layout)
before = set(sys.modules)
sdpo_step(model, [TokenSample((1, 2), (1, 2, 3), (4, 5))], SdpoConfig(), state)
print(*(set(sys.modules) - before))
"""


@pytest.fixture(scope="module")
def told() -> list[set[str]]:
    """What a process imports in a first step, and what it has imported once it has the rest of the core too."""
    program = f"{FIRST_STEP}\nimport {', '.join(CORE)}\nprint(*sys.modules)\n"
    paths = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": paths}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_step_losses_teachers_and_the_forward_of_our_own_import_torch_alone(told: list[set[str]]) -> None:
    imported = {name.partition(".")[0] for name in told[1]}
    assert "torch" in imported
    assert set(CORE) <= told[1]
    assert not imported & FOREIGN


def test_a_first_step_imports_nothing_more(told: list[set[str]]) -> None:
    """PyTorch imports its compiler, and a library of symbolic mathematics, when some functions are first used."""
    late = told[0]
    assert len(late) < 20, sorted(late)
    assert not {name.partition(".")[0] for name in late} & {"sympy", "mpmath"}
