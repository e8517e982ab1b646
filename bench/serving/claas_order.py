"""An attempt in the order of work of a system that sleeps first: running answers are waited for, then vLLM sleeps,
and only then the base model is read from disk. Everything else is the trainer's own.

    python bench/serving/claas_order.py INPUT       # as `python -m claas_trainer run --input INPUT`
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In place of this folder, whose modules would hide others of their names.
sys.path[:1] = [str(ROOT / part) for part in ("crds/src", "contract/src", "vllm_client/src", "trainer_image/src")]
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import claas_trainer.attempt.run
import claas_trainer.engines.local.local_step
from claas_contract.engine import EngineNeeds
from claas_contract.input import ServingTarget
from claas_contract.outcome import TrainerCommand
from claas_trainer.attempt.worker import attempt
from claas_trainer.engines.access import GpuNeed
from claas_trainer.logs import log
from claas_trainer.messages.events import Reporter
from claas_trainer.messages.result import exit_code
from claas_trainer.paths import Paths
from claas_trainer.serving.handover.base import Handover
from claas_trainer.serving.handover.sleep import SleepHandover
from claas_trainer.serving.pods import ServingPod


class PauseFirst(SleepHandover):
    """Pauses when it is asked for the first time, before anything is loaded."""

    _paused_already = False

    async def check(self, gpu: GpuNeed | None) -> None:
        if self._paused_already:
            self._gpu = gpu
            return
        await super().check(None)
        log("begun")
        self._paused_already = True
        await super()._pause()

    async def _pause(self) -> None:
        return


def _pause_first(
    serving: ServingTarget | None, needs: EngineNeeds, pods: tuple[ServingPod, ...], reporter: Reporter
) -> Handover:
    assert serving is not None, "the bench serves"
    return PauseFirst(pods, serving, reporter)


def main() -> int:
    vars(claas_trainer.attempt.run)["make_handover"] = _pause_first
    paths = Paths.from_environment()
    with open(os.devnull, "wb") as nobody:
        result = attempt(TrainerCommand.RUN, Path(sys.argv[1]), paths, Reporter(nobody.fileno()))
    paths.termination_message.write_text(result.to_termination_message(), encoding="utf-8")
    return int(exit_code(result))


if __name__ == "__main__":
    started = time.monotonic()
    sys.exit(main())
