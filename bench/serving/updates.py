"""Whole updates of an adapter by the real trainer, from a job's input to the new version's first answer."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.compute.work import Work
from bench.serving.server import Server
from bench.serving.words import word
from claas_contract.input import AdapterIdentity, ModelLocation, ServingTarget, TrainerInput, VllmPod
from claas_contract.jobs import JobIdentity
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.serving import HandoverKind, PauseMode, Probe
from claas_crds.v1alpha1.training import TrainingConfig

ROOT = Path(__file__).resolve().parents[2]
NAME = "coder"
_ANSWER_POLL_SECONDS = 0.01
_EVENT_TIMEOUT_SECONDS = 300.0
_SOURCES = ("crds/src", "contract/src", "vllm_client/src", "trainer_image/src")


@dataclass(frozen=True)
class Way:
    """How an update is taken: the hand-over, what serving may lose by it (percent), and whether in the order of
    work of a system that sleeps before it loads."""

    name: str
    handover: HandoverKind
    max_slowdown: int = 90
    pauses_first: bool = False


@dataclass
class Update:
    """One update: when its trainer told what (`time.monotonic`), when the new version answered, and its result."""

    way: Way
    process: subprocess.Popen[str]
    termination: Path
    started: float
    told: dict[str, float] = field(default_factory=dict)
    details: dict[str, dict[str, object]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    answered: float | None = None
    first_news: threading.Condition = field(default_factory=threading.Condition)

    def read(self) -> None:
        """Follow the trainer's log to its end, in a thread of its own."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            now = time.monotonic()
            self.lines.append(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            with self.first_news:
                self.told.setdefault(event["event"], now)
                self.details.setdefault(event["event"], event)
                self.first_news.notify_all()
        self.termination.with_name(f"trainer-{self.started:.0f}.log").write_text("".join(self.lines))
        with self.first_news:
            self.told["ended"] = time.monotonic()
            self.first_news.notify_all()

    def wait_for(self, event: str) -> float:
        """When the trainer told of it. Raises RuntimeError when it ended without."""
        with self.first_news:
            self.first_news.wait_for(lambda: event in self.told or "ended" in self.told, _EVENT_TIMEOUT_SECONDS)
            if event not in self.told:
                raise RuntimeError(f"no {event!r} from the trainer:\n{''.join(self.lines[-25:])}")
            return self.told[event]

    @property
    def began(self) -> float:
        """When it was ready: from here on serving is touched."""
        return self.told["begun" if self.way.pauses_first else "prepared"]

    @property
    def result(self) -> TrainerResult:
        return TrainerResult.model_validate_json(self.termination.read_text())

    @property
    def worker(self) -> int:
        """The process that computes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def kill(self) -> None:
        """SIGKILL to both of the trainer's processes, as when its node takes the pod away."""
        for process in (self.worker, self.process.pid):
            os.kill(process, signal.SIGKILL)


class Pod:
    """What a trainer pod has mounted, and the server that it trains for."""

    def __init__(self, root: Path, model: Path, server: Server, work: Work, vocabulary: int) -> None:
        self.root, self._model, self._server, self._vocabulary = root, model, server, vocabulary
        self._work = work
        self.storage = root / "storage"
        (self.storage / "versions").mkdir(parents=True, exist_ok=True)
        self._updates = 0

    def initial(self) -> None:
        """Version 0, in service. Raises RuntimeError."""
        process = self._start("init", self._document())
        process.communicate(timeout=_EVENT_TIMEOUT_SECONDS)
        if process.returncode != 0:
            raise RuntimeError(f"no initial version: {(self.root / 'termination').read_text()}")
        self.serve(0)

    def serve(self, version: int) -> None:
        """Put a version into service by hand."""
        target, path = f"{NAME}@{version}", str(self.storage / "versions" / str(version))
        headers = {"X-Claas-Token": self._server.token_file.read_text()}
        with httpx.Client(base_url=self._server.url, headers=headers, timeout=120, trust_env=False) as client:
            body: dict[str, object] = {"lora_name": target, "lora_path": path}
            client.post("/v1/load_lora_adapter", json=body).raise_for_status()
            body = {"target": target, "path": path, "version": version}
            client.put(f"/claas/aliases/{NAME}", json=body).raise_for_status()

    @property
    def newest(self) -> int:
        """The newest version."""
        return max(int(path.name) for path in (self.storage / "versions").iterdir() if path.name.isdigit())

    def start(self, way: Way) -> Update:
        """Start a trainer."""
        self._updates += 1
        (self.root / "samples.json").write_text(json.dumps(self._samples()))
        document = self._document().model_copy(
            update={
                "jobs": [JobIdentity(namespace="bench", name="update", uid=f"uid-{time.time_ns()}", attempt=1)],
                "parent": self.newest,
                "samples_file": str(self.root / "samples.json"),
                "training": TrainingConfig(),
                "serving": self._target(way),
            }
        )
        started = time.monotonic()
        process = self._start("claas_order" if way.pauses_first else "run", document)
        update = Update(way, process, self.root / "termination", started)
        threading.Thread(target=update.read, daemon=True).start()
        return update

    def take(self, way: Way) -> Update:
        """A whole update. Raises RuntimeError."""
        parent, update = self.newest, self.start(way)
        update.wait_for("published")
        update.answered = self._first_answer(parent + 1)
        update.wait_for("ended")
        update.process.wait()
        if not update.result.succeeded:
            raise RuntimeError(f"the update failed: {update.result.message}\n{''.join(update.lines[-25:])}")
        return update

    def _first_answer(self, version: int) -> float:
        body = {"model": NAME, "prompt": [1, 2, 3], "max_tokens": 1}
        deadline = time.monotonic() + _EVENT_TIMEOUT_SECONDS
        with httpx.Client(base_url=self._server.url, timeout=60, trust_env=False) as client:
            while time.monotonic() < deadline:
                answer = client.post("/v1/completions", json=body)
                if answer.headers.get("x-claas-version") == f"{NAME}@{version}":
                    return time.monotonic()
                time.sleep(_ANSWER_POLL_SECONDS)
        raise RuntimeError(f"version {version} never answered")

    def _start(self, task: str, document: TrainerInput) -> subprocess.Popen[str]:
        number = f"{task}-{time.time_ns()}"
        # A pod's scratch folder is new each time; a system that lives on keeps its own.
        scratch = self.root / "scratch" / (task if task == "claas_order" else number)
        scratch.mkdir(parents=True, exist_ok=True)
        path = self.root / f"{number}.json"
        path.write_text(document.model_dump_json(exclude_none=True))
        sources = [str(ROOT / source) for source in _SOURCES]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*sources, os.environ.get("PYTHONPATH", "")]),
            "CLAAS_STORAGE_DIRECTORY": str(self.root),
            "CLAAS_MODEL_DIRECTORY": str(self._model.parent),
            "CLAAS_SCRATCH_DIRECTORY": str(scratch),
            "CLAAS_CONTROL_TOKEN_FILE": str(self._server.token_file),
            "CLAAS_TERMINATION_MESSAGE_FILE": str(self.root / "termination"),
            "CLAAS_PROGRESS_PORT": "0",
        }
        command = [str(ROOT / "bench/serving/claas_order.py"), str(path)]
        if task != "claas_order":
            command = ["-m", "claas_trainer", task, "--input", str(path)]
        return subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def _document(self) -> TrainerInput:
        return TrainerInput(
            adapter=AdapterIdentity(namespace="bench", name=NAME, uid="adapter-uid", lora_id="bench/coder"),
            model=ModelLocation(path=self._model.name),
            lora=LoraSpec(rank=32, alpha=64),
            storage_path=self.storage.name,
        )

    def _target(self, way: Way) -> ServingTarget:
        pod = VllmPod(name="vllm-0", uid="pod-uid", url=self._server.url, storage_path=str(self.storage))
        return ServingTarget(
            served_name=NAME,
            pods=[pod],
            handover=way.handover,
            max_slowdown_percent=way.max_slowdown,
            pause=PauseMode.WAIT if way.pauses_first else PauseMode.KEEP,
            has_control_token=True,
            probe=Probe(prompt=word(1), max_tokens=4),
        )

    def _samples(self) -> list[dict[str, str]]:
        draw, work = random.Random(self._updates), self._work

        def text(words: int) -> str:
            return " ".join(word(draw.randrange(self._vocabulary - 8)) for _ in range(words))

        return [
            {"user_prompt": text(work.prompt), "response": text(work.response), "feedback": text(work.feedback)}
            for _ in range(work.samples)
        ]
