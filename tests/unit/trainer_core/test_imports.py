"""The core of the step can be measured on any machine that has torch."""

from __future__ import annotations

import subprocess
import sys

CORE = (
    "claas_trainer.step",
    "claas_trainer.batch",
    "claas_trainer.optimizer",
    "claas_trainer.policy",
    "claas_trainer.scoring",
    "claas_trainer.losses.sdpo",
    "claas_trainer.losses.support",
    "claas_trainer.teachers.average",
    "claas_trainer.teachers.frozen",
    "claas_trainer.teachers.hindsight",
    "claas_trainer.teachers.trust_region",
    "claas_trainer.transformer.model",
    "claas_trainer.weights.host",
    "claas_trainer.weights.shape",
    "claas_trainer.weights.source",
)
FOREIGN = {"transformers", "peft", "pydantic", "claas_crds", "kubernetes", "safetensors", "httpx", "vllm"}


def test_step_losses_teachers_and_the_forward_of_our_own_import_torch_alone() -> None:
    program = f"import sys, {', '.join(CORE)}; print(*(name.partition('.')[0] for name in sys.modules))"
    paths = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    imported = set(done.stdout.split())
    assert "torch" in imported
    assert not imported & FOREIGN
