"""That a trainer in namespaces of its own trains on another process's weights, and harms nobody. For a GPU machine.

    python bench/sharing.py --shape qwen3-8b        # as root: it makes namespaces

One process holds the weights and exports them as vLLM's worker does (`claas_vllm.WeightExport`). The trainer runs
with PID, IPC, mount, network and UTS namespaces and a /dev/shm of its own, maps them and takes steps. Checked: its
first loss equals that on a copy; the weights' checksum never changes; after it left or was killed, the GPU's memory
is as before.
"""

from __future__ import annotations

import sys

# This folder: its modules would hide others of their names, such as the standard library's `operator`.
sys.path.pop(0)

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "trainer_image/src"), str(ROOT / "vllm_companion/src")]

import torch

from bench.compute.shapes import SHAPES
from bench.compute.work import Work
from bench.serving.namespaces import in_own_namespaces
from claas_trainer.forward.transformer.adapters import adapter_shapes
from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.weights.random import RandomWeights
from claas_trainer.forward.weights.shared import SharedWeights, parse_export, vllm_names
from claas_trainer.forward.weights.source import WeightSource
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.settings import Schedule, SdpoConfig
from claas_trainer.sdpo.step import sdpo_step
from claas_vllm import WeightExport

RANK = 32


class Holder(WeightExport):
    """Holds weights under vLLM's names, as its worker does with LoRA on."""

    def __init__(self, shape: ModelShape) -> None:
        source = RandomWeights(shape, torch.device("cuda", 0), torch.bfloat16, seed=0)
        self.parameters = vllm_names(source)
        named = [(name.replace("proj.", "proj.base_layer."), tensor) for name, tensor in self.parameters.items()]
        self.model_runner = SimpleNamespace(model=SimpleNamespace(named_parameters=lambda: named))
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(enable_sleep_mode=False, quantization=None),
            parallel_config=SimpleNamespace(world_size=1),
            device_config=SimpleNamespace(device_type="cuda"),
        )

    def checksum(self) -> int:
        """Changes with any bit of any weight."""
        sums = [tensor.view(torch.int16).sum(dtype=torch.int64).item() for tensor in self.parameters.values()]
        return hash(tuple(sums))


def hold(shape: ModelShape) -> None:
    """The holder's process: an export, then a checksum and the taken bytes for each line that comes."""
    holder = Holder(shape)
    print(json.dumps(holder.claas_export_weights()), flush=True)
    for _ in sys.stdin:
        checksum = holder.checksum()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        print(json.dumps({"checksum": checksum, "taken": total - free}), flush=True)


def steps(source: WeightSource, work: Work, count: int) -> tuple[float, list[float]]:
    """Steps from one state; the loss of the first, which is a matter of forwards alone, and the seconds of each."""
    tensors = adapter_shapes(source.shape, RANK)
    model = DecoderModel(source, tensors, RANK, 2.0 * RANK)
    generator = torch.Generator().manual_seed(1)
    masters = {name: torch.randn(size, generator=generator) * 0.01 for name, size in tensors.items()}
    state = OptimizerState.fresh(masters, model.layout, pin=True)
    samples, times = work.made(source.shape.vocabulary), []
    losses = []
    for _ in range(count):
        started = time.perf_counter()
        result = sdpo_step(model, samples, SdpoConfig(), state, schedule=Schedule(4608, 1024))
        times.append(time.perf_counter() - started)
        losses.append(result.metrics.loss)
        state = result.state
        print(f"step {len(times)}: {times[-1]:.3f} s", file=sys.stderr, flush=True)
    return losses[0], times


def train(shape: ModelShape, export: Path, work: Work, count: int) -> None:
    """The trainer's process."""
    started = time.perf_counter()
    torch.zeros(1, device="cuda")
    context = time.perf_counter()
    source = SharedWeights(shape, torch.device("cuda", 0), parse_export(json.loads(export.read_text())))
    source.acquire()
    mapped = time.perf_counter()
    loss, times = steps(source, work, count)
    own = torch.cuda.max_memory_allocated()
    found = {
        "context_s": context - started, "map_s": mapped - context, "steps_s": times, "own_gb": own / 1e9,
        "loss": loss,
        "processes_seen": sum(path.name.isdigit() for path in Path("/proc").iterdir()),
    }  # fmt: skip
    source.release()
    print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--role", choices=["all", "hold", "train"], default="all")
    parser.add_argument("--export", type=Path)
    arguments = parser.parse_args()
    shape, work = SHAPES[arguments.shape], Work(4, 512, 128, 512)
    if arguments.role == "hold":
        hold(shape)
    elif arguments.role == "train":
        train(shape, arguments.export, work, arguments.steps)
    else:
        check(arguments.shape, work, arguments.steps)


def check(name: str, work: Work, count: int) -> None:
    """Both processes, and what is claimed of them."""
    me = [sys.executable, str(Path(__file__).resolve()), "--shape", name]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
        [*me, "--role", "hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:  # fmt: skip
        commands, answers = holder.stdin, holder.stdout
        assert commands is not None
        assert answers is not None
        export = Path(folder) / "export.json"
        export.write_text(answers.readline())
        print(f"exported {len(json.loads(export.read_text())['tensors'])} tensors")

        def ask() -> dict[str, Any]:
            commands.write("\n")
            commands.flush()
            found: dict[str, Any] = json.loads(answers.readline())
            return found

        def trainer(steps: int) -> list[str]:
            command = [*me, "--role", "train", "--export", str(export), "--steps", str(steps)]
            return in_own_namespaces(command)

        before = ask()
        mapped = json.loads(subprocess.run(trainer(count), stdout=subprocess.PIPE, check=True, text=True).stdout)
        median = sorted(mapped.pop("steps_s"))[count // 2]
        print(f"{count} steps on mapped weights, {median:.3f} s each; {mapped}")
        after = ask()
        assert after["checksum"] == before["checksum"], "the served weights changed"
        print(f"after them: checksum unchanged, GPU memory {_difference(before, after)}")

        with subprocess.Popen(trainer(10_000), stderr=subprocess.PIPE, text=True, start_new_session=True) as doomed:
            assert doomed.stderr is not None
            while not doomed.stderr.readline().startswith("step 2"):
                pass
            time.sleep(0.1)
            os.killpg(doomed.pid, signal.SIGKILL)
        time.sleep(1.0)
        killed = ask()
        assert killed["checksum"] == before["checksum"], "the served weights changed"
        print(f"trainer killed in mid-step: checksum unchanged, GPU memory {_difference(before, killed)}")
        commands.close()
    copy, _ = steps(RandomWeights(SHAPES[name], torch.device("cuda", 0), torch.bfloat16, seed=0), work, 1)
    print(f"the first loss on mapped weights is {mapped['loss']}, on a copy {copy}")
    assert mapped["loss"] == copy, "a mapped weight is not what was exported"


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    return f"{(after['taken'] - before['taken']) / 1e6:+.0f} MB"


if __name__ == "__main__":
    main()
