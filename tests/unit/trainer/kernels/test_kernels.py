"""The Triton kernels compute what their plain definitions do, as Triton's interpreter tells without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

# Sums in another order, in float32.
TOLERANCE = 1e-6


def test_every_kernel_is_its_definition() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.unit.trainer.kernels.interpreted_kernels"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=120,
    )
    distances = json.loads(run.stdout)
    assert {name.partition(",")[0] for name in distances} == {
        "rms_norm", "rms_norm_backward", "rotate", "rotate_backward", "swiglu", "swiglu_backward", "row_logsumexp",
        "others_gradient",
    }  # fmt: skip
    assert {name: distance for name, distance in distances.items() if distance > TOLERANCE} == {}
