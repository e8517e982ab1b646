"""Records a volume and what is said with the operator: the real trainer, as its image runs it, on a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claas_contract.input import AdapterIdentity, ModelLocation, ServingTarget, TrainerInput, VllmPod
from claas_contract.jobs import JobIdentity
from claas_contract.outcome import TrainerCommand
from claas_contract.places import STORAGE_DIRECTORY
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.training import TeacherKind, TrainingConfig
from claas_crds.v1alpha1.version import VersionVerdict
from claas_trainer.store.verdict import write_verdict
from tests.builders.models import build_tiny_qwen3
from tests.cluster.services.control_plane import free_ports
from tests.unit.trainer.sleeping_server import sleeping_server

ADAPTER = "recorded-namespace/tone"
SAMPLES = [
    {"user_prompt": "Why?", "response": "Because.", "feedback": "kinder"},
    {"user_prompt": "When?", "response": "Now, I think.", "feedback": "shorter"},
]


class _Pod:
    """The folders of one trainer pod after another, and what each is told and says."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._messages = folder / "messages"
        self._messages.mkdir(parents=True, exist_ok=True)
        self._scratch = scratch
        self._storage = folder / "volume"
        self._model = build_tiny_qwen3(scratch / "model" / "base").parent
        self._samples = scratch / "samples.json"
        self._samples.write_text(json.dumps(SAMPLES))

    @property
    def versions(self) -> Path:
        """Where the adapter's versions lie."""
        return self._storage / ADAPTER / "versions"

    def ask(self, name: str, command: TrainerCommand, document: TrainerInput, *, exit_code: int) -> None:
        """Run the trainer; keep its input, its termination message, and what its progress was before its end."""
        text = document.model_dump_json(exclude_none=True)
        (self._messages / f"{name}.input.json").write_text(text + "\n")
        if document.samples_file is not None:
            text = document.model_copy(update={"samples_file": str(self._samples)}).model_dump_json(exclude_none=True)
        given, said = self._scratch / "input.json", self._scratch / "termination-log"
        given.write_text(text)
        port = free_ports(1)[0]
        environment = {
            **os.environ,
            "CLAAS_STORAGE_DIRECTORY": str(self._storage),
            "CLAAS_MODEL_DIRECTORY": str(self._model),
            "CLAAS_SCRATCH_DIRECTORY": str(self._scratch),
            "CLAAS_TERMINATION_MESSAGE_FILE": str(said),
            "CLAAS_PROGRESS_PORT": str(port),
        }
        trainer = subprocess.Popen(
            [sys.executable, "-m", "claas_trainer", command.value, "--input", str(given)], env=environment
        )
        progress: dict[str, bytes] = {}
        while trainer.poll() is None:
            seen = _progress(port)
            if seen is not None:
                progress.setdefault(json.loads(seen)["phase"], seen)
            time.sleep(0.02)
        assert trainer.returncode == exit_code, f"{name}: exit code {trainer.returncode}: {said.read_text()}"
        message = said.read_text().replace(str(self._storage), STORAGE_DIRECTORY)
        (self._messages / f"{name}.result.json").write_text(message + "\n")
        lines = b"".join(each + b"\n" for each in progress.values())
        (self._messages / f"{name}.progress.jsonl").write_bytes(lines)


def record_trainer(folder: Path, scratch: Path) -> None:
    """Write `messages/` and `volume/` below the folder: versions 0 to 3, the third of which serving refused."""
    pod = _Pod(folder, scratch)
    start = TrainerInput(
        adapter=AdapterIdentity(namespace="recorded-namespace", name="tone", uid="adapter-uid", lora_id="user/tone"),
        model=ModelLocation(path="base"),
        lora=LoraSpec(rank=4, alpha=8, target_modules=["layers.0.self_attn.v_proj"]),
        storage_path=ADAPTER,
    )
    pod.ask("init", TrainerCommand.INIT, start, exit_code=0)
    pod.ask("first", TrainerCommand.RUN, _step(start, 1, 0), exit_code=0)
    # No server was there for it; one that served it later would have this noted.
    write_verdict(pod.versions / "1", VersionVerdict.SERVED)
    ema = TrainingConfig(learning_rate=1e-3, teacher_top_k=10, teacher=TeacherKind.EMA, seed=3)
    pod.ask("second", TrainerCommand.RUN, _step(start, 2, 1, ema), exit_code=0)
    with _server_that_takes_no_adapter() as serving:
        refused = _step(start, 3, 2).model_copy(update={"serving": serving})
        pod.ask("refused", TrainerCommand.RUN, refused, exit_code=64)
    pod.ask("recover", TrainerCommand.RECOVER, start.model_copy(update={"jobs": [_job(2)]}), exit_code=0)
    pod.ask("recover-nothing", TrainerCommand.RECOVER, start.model_copy(update={"jobs": [_job(9)]}), exit_code=0)
    pod.ask("no-parent", TrainerCommand.RUN, _step(start, 4, 17), exit_code=75)
    for left in pod.versions.glob(".*"):
        shutil.rmtree(left)


def _job(number: int) -> JobIdentity:
    return JobIdentity(namespace="recorded-namespace", name=f"step-{number}", uid=f"uid-{number}", attempt=1)


def _step(start: TrainerInput, number: int, parent: int, training: TrainingConfig | None = None) -> TrainerInput:
    return start.model_copy(
        update={
            "jobs": [_job(number)],
            "parent": parent,
            "samples_file": "/var/run/claas/input/samples.json",
            "training": training or TrainingConfig(learning_rate=1e-3, teacher_top_k=10),
        }
    )


@contextmanager
def _server_that_takes_no_adapter() -> Iterator[ServingTarget]:
    with sleeping_server() as server:
        pod = VllmPod(name="vllm-0", uid="pod-uid", url=server.url, storage_path=f"/mnt/adapters/{ADAPTER}")
        yield ServingTarget(served_name="tone", pods=[pod])


def _progress(port: int) -> bytes | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=1) as answer:
            return bytes(answer.read())
    except OSError:
        return None
