"""What a process holds when Modal takes a snapshot of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.models import build_tiny_qwen3

pytestmark = pytest.mark.contract

_WITHOUT_CUDA = """
import sys
from pathlib import Path
import torch

def refuse(*arguments):
    raise SystemExit("asked for CUDA before the snapshot")

for name in ("_cuda_init", "_cuda_getDeviceCount"):
    setattr(torch._C, name, refuse)
from claas_trainer.engines.modal.container import step_server
from claas_trainer.engines.modal.container.base_weights import BaseModelOnVolume
model = BaseModelOnVolume.read(Path(sys.argv[1]), "claas-weights", "acme/tiny", cuda=True)
mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "acme" in line]
opened = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and "acme" in str(path.readlink())]
print(torch.cuda.is_initialized(), mapped, opened, model.held.shape.layers)
"""


def test_a_process_that_holds_a_model_for_a_gpu_has_asked_for_none_and_has_no_file_open(tmp_path: Path) -> None:
    build_tiny_qwen3(tmp_path / "acme" / "tiny")
    command = [sys.executable, "-c", _WITHOUT_CUDA, str(tmp_path)]
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": "/usr/bin:/bin"}
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.stdout.splitlines()[-1:] == ["False [] [] 2"], done.stderr
