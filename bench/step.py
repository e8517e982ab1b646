"""How long a step takes, against the floor of the hardware and against a plain step, in one run.

    python bench/step.py --shape qwen3-8b                      # on a CUDA GPU
    python bench/step.py --shape small --work 4,64,16,64       # on the CPU
    python bench/step.py --shape qwen3-8b --card-gib 0,22.5    # also as on a smaller card, vLLM's residue counted in
    python bench/step.py --shape qwen3-8b --sweep              # from 1 to 64 samples, from 128 to 4096 tokens

Weights and tokens are random; nothing is downloaded. Prints a table, and writes JSON to --json.
"""

from __future__ import annotations

import sys

# This folder: its modules would hide others of their names, such as the standard library's `operator`.
sys.path.pop(0)

import argparse
import gc
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "trainer_image/src")]

# As in the trainer: without it a tight plan would lose memory to fragments.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch

from bench.compute.device import describe, host_rate, matmul_rate, seconds, sustained_rate, taken_bytes
from bench.compute.kernels import print_profile
from bench.compute.plain import PlainStep
from bench.compute.shapes import SHAPES
from bench.compute.work import Work, operations
from claas_trainer.forward.transformer.adapters import adapter_shapes
from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.transformer.plan import Footprint, MemoryPlan, plan_memory
from claas_trainer.forward.transformer.warm_up import WarmUp
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.batch import TokenSample
from claas_trainer.sdpo.old_policy import OLD_VECTORS, with_old_logprobs
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.settings import SdpoConfig
from claas_trainer.sdpo.step import sdpo_step
from claas_trainer.sdpo.teachers.frozen import FrozenTeacher
from claas_trainer.sdpo.transfers import reserve_device, reserve_pinned

GIB = 1024**3
RESIDUE_BYTES = int(2.4 * GIB)
"""What a sleeping vLLM was seen to keep on its GPU."""
SUSTAINED_SECONDS = 2.0
SERVING_FREE_BYTES = int(1.6 * GIB)
"""What a serving vLLM leaves free on a small card, for the step to be prepared in."""
SWEEP = [Work(b, 512, 128, 512) for b in (1, 4, 16, 64)] + [
    Work(4, 512, 128, r) for r in (128, 512, 1024, 2048, 4096)
]


@dataclass(frozen=True)
class Row:
    """One measurement. `first_seconds`: of the first step after prepare. `to_floor`: seconds over the floor's.
    `peak_gb`: of tensors. `driver_gib`: as the driver counts it, contexts and vLLM's residue included."""

    step: str
    work: Work
    cut: str
    first_seconds: float
    seconds: float
    floor_seconds: float
    to_floor: float
    tokens_per_second: float
    peak_gb: float
    planned_gb: float
    driver_gib: float

    def line(self) -> str:
        """As a line of the table."""
        work = f"{self.work.samples},{self.work.prompt},{self.work.feedback},{self.work.response}"
        return (
            f"| {self.step} | {work} | {self.cut} | {self.first_seconds:.3f} | {self.seconds:.3f} "
            f"| {self.floor_seconds:.3f} | {self.to_floor:.2f} | {self.tokens_per_second:,.0f} | {self.peak_gb:.1f} "
            f"| {self.planned_gb:.1f} | {self.driver_gib:.1f} |"
        )


HEADING = (
    "| step | B,P,F,R | cut | first s | s | floor s | to floor | tokens/s | peak GB | planned GB | driver GiB |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


class Bench:
    """One shape on one device."""

    def __init__(
        self,
        shape: ModelShape,
        device: torch.device,
        rank: int,
        repeats: int,
        profiled: bool = False,
        answered_by: int = 0,
    ) -> None:
        self.shape, self.device, self.rank, self.repeats = shape, device, rank, repeats
        self.profiled, self.answered_by = profiled, answered_by
        self.on_gpu = device.type == "cuda"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.tensors = adapter_shapes(shape, rank)
        self.rate, self.host_rate = matmul_rate(device, self.dtype), host_rate(device)
        self.sustained = sustained_rate(device, self.dtype, SUSTAINED_SECONDS) if self.on_gpu else self.rate
        generator = torch.Generator(device).manual_seed(0)

        def fill(name: str, target: torch.Tensor) -> None:
            drawn = torch.empty(target.shape, dtype=target.dtype, device=device)
            target.copy_(drawn.normal_(1.0 if "norm" in name else 0.0, 0.02, generator=generator))

        self.weights = HostWeights.filled(shape, device, self.dtype, fill)

    def ours(self, work: Work, card_gib: float = 0.0) -> Row:
        """Prepared as the engine does it, then step after step. On a card of `card_gib` in all; 0 means this one."""
        samples = work.made(self.shape.vocabulary)
        self.expect(samples)
        model = DecoderModel(self.weights, self.tensors, self.rank, 2.0 * self.rank)
        generator = torch.Generator().manual_seed(1)
        masters = {name: torch.randn(size, generator=generator) * 0.01 for name, size in self.tensors.items()}
        state = OptimizerState.fresh(masters, model.layout, pin=self.on_gpu)
        self.forget()
        plan = plan_memory(self.footprint(model), samples, self.available(card_gib))
        free = SERVING_FREE_BYTES if card_gib else self.available(0)
        if self.on_gpu:
            args = (self.shape, self.dtype, self.device, self.tensors, self.rank, SdpoConfig(), FrozenTeacher())
            WarmUp(*args, plan.schedule, samples).run(free)
        self.forget()
        model.checkpointed_layers = plan.checkpointed_layers
        if card_gib:
            # As small as that card: what is freed and not needed again has to be given back.
            total = torch.cuda.mem_get_info(self.device)[1]
            torch.cuda.set_per_process_memory_fraction(self.available(card_gib) / total, self.device)
        if self.on_gpu:
            reserve_pinned(model.layout.elements, 3 + min(self.answered_by, OLD_VECTORS))
            # Serving keeps the clocks up until the pause begins; after a rest they need a tenth of a second.
            sustained_rate(self.device, self.dtype, 0.5)
            self.forget()
        taken = seconds(self.device, lambda: self.acquire(plan))
        adapters = {
            number: {name: each.to(self.dtype) for name, each in masters.items()}
            for number in range(self.answered_by)
        }

        def take() -> None:
            answered: Sequence[TokenSample] = samples
            if adapters:
                named = [replace(sample, version=index % len(adapters)) for index, sample in enumerate(samples)]
                answered, _ = with_old_logprobs(model, named, adapters, plan.schedule, lambda number, count: None)
            sdpo_step(model, answered, SdpoConfig(), state, schedule=plan.schedule)

        times, driver = [], 0
        for _ in range(self.repeats + 1):
            times.append(seconds(self.device, take))
            driver = max(driver, taken_bytes(self.device))
        if self.profiled:
            print_profile(take)
        self.weights.release()
        if card_gib:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
        name = f"ours, card of {card_gib} GiB" if card_gib else "ours"
        name += f", answered by {len(adapters)} versions" if adapters else ""
        cut = f"{plan.schedule.micro_batch_tokens} tokens, {plan.checkpointed_layers} checkpointed"
        print(f"{name}: weights came in {taken:.3f} s; steps {[round(x, 3) for x in times]}", file=sys.stderr)
        return self.row(name, work, cut, times, plan, driver)

    def plain(self, work: Work, micro_batch: int, *, checkpointed: bool) -> Row:
        """The plain step on the same weights."""
        samples = work.made(self.shape.vocabulary)
        self.expect(samples)
        self.forget()
        self.weights.acquire()
        step = PlainStep(self.weights, self.rank, micro_batch, checkpointed=checkpointed)
        times = [seconds(self.device, partial(step.take, samples)) for _ in range(self.repeats + 1)]
        driver = taken_bytes(self.device)
        del step
        self.weights.release()
        cut = f"{micro_batch} samples, {'all' if checkpointed else 'none'} checkpointed"
        return self.row("plain", work, cut, times, None, driver)

    def row(self, name: str, work: Work, cut: str, times: list[float], plan: MemoryPlan | None, driver: int) -> Row:
        elements = sum(size.numel() for size in self.tensors.values())
        floor = operations(self.shape, work, elements).floor / self.rate
        median = statistics.median(times[1:])
        peak = torch.cuda.max_memory_allocated(self.device) if self.on_gpu else 0
        planned = plan.peak_bytes if plan else 0
        return Row(
            name, work, cut, times[0], median, floor, median / floor, work.tokens / median, peak / 1e9, planned / 1e9,
            (driver + (RESIDUE_BYTES if driver else 0)) / GIB,
        )  # fmt: skip

    def acquire(self, plan: MemoryPlan) -> None:
        self.weights.acquire()
        reserve_device(plan.peak_bytes - self.weights.resident_bytes, self.device)
        if self.on_gpu:
            # What was reserved is no peak of the step's.
            torch.cuda.reset_peak_memory_stats(self.device)

    def footprint(self, model: DecoderModel) -> Footprint:
        elements = model.layout.elements
        return Footprint(self.shape, self.dtype.itemsize, self.weights.resident_bytes, elements, self.rank)

    def available(self, card_gib: float) -> int:
        """Bytes for the step. Under a card's name: the card less vLLM's residue and this process's own context."""
        if not self.on_gpu:
            return 2**62
        free, total = torch.cuda.mem_get_info(self.device)
        context = total - free - torch.cuda.memory_reserved(self.device)
        return int(card_gib * GIB) - RESIDUE_BYTES - context if card_gib else free

    def expect(self, samples: list[TokenSample]) -> None:
        ids = [x.student_prompt_ids + x.teacher_prompt_ids + x.response_ids for x in samples]
        self.weights.expect(torch.tensor([token for sample in ids for token in sample]))

    def forget(self) -> None:
        """Give back what the allocator keeps, and begin to count the peak anew."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def work_of(text: str, *, ragged: bool) -> Work:
    """B,P,F,R as on the command line."""
    samples, prompt, feedback, response = map(int, text.split(","))
    return Work(samples, prompt, feedback, response, ragged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--work", action="append", metavar="B,P,F,R", help="may be given several times")
    parser.add_argument(
        "--ragged", action="store_true", help="samples of many lengths, on the average the given ones"
    )
    parser.add_argument("--card-gib", default="0", help="cards' memory in GiB, with commas; 0 is all that is free")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plain", type=int, default=4, help="samples in a micro-batch of the plain step; 0 for none")
    parser.add_argument("--plain-checkpointed", action="store_true")
    parser.add_argument("--sweep", action="store_true", help="many sizes, ours alone")
    parser.add_argument(
        "--answered-by",
        type=int,
        default=0,
        metavar="N",
        help="old log-probabilities are not recorded: computed under N earlier versions",
    )
    parser.add_argument("--profile", action="store_true", help="print where the time goes, of ours")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    bench = Bench(
        SHAPES[arguments.shape], device, arguments.rank, arguments.repeats, arguments.profile, arguments.answered_by
    )
    default = ["16,512,128,512"] if device.type == "cuda" else ["8,96,32,96"]
    works = [work_of(text, ragged=arguments.ragged) for text in arguments.work or default]
    cards = [float(text) for text in arguments.card_gib.split(",")]
    runs: list[Callable[[], Row]] = [
        partial(bench.ours, work, card) for work in (SWEEP if arguments.sweep else works) for card in cards
    ]
    if arguments.plain and not arguments.sweep:
        runs += [
            partial(bench.plain, work, arguments.plain, checkpointed=arguments.plain_checkpointed) for work in works
        ]
    print(f"{arguments.shape}, rank {arguments.rank}, on {describe(device)}, torch {torch.__version__}")
    print(f"matmul {bench.rate / 1e12:.1f} TFLOP/s", end="")
    print(f", host to GPU {bench.host_rate / 1e9:.1f} GB/s" if bench.host_rate else "")
    print(
        f"the same without a pause of {SUSTAINED_SECONDS:.0f} s: {bench.sustained / 1e12:.1f} TFLOP/s"
        if bench.on_gpu
        else ""
    )
    print(HEADING)
    rows = []
    for run in runs:
        rows.append(run())
        print(rows[-1].line(), flush=True)
    if arguments.json:
        found = {"device": describe(device), "torch": torch.__version__, "shape": arguments.shape,
                 "matmul_per_second": bench.rate, "sustained_matmul_per_second": bench.sustained,
                 "host_bytes_per_second": bench.host_rate,
                 "rows": [asdict(row) for row in rows]}  # fmt: skip
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
