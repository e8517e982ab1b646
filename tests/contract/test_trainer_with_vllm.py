"""The real trainer around the real vLLM on the CPU; files stand in for the pod.

What a process is for (a step under traffic, a kill in the pause) runs as `python -m claas_trainer`; the rest is the
worker's attempt in this process, which has imported PyTorch already.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from claas_contract.input import AdapterIdentity, ModelLocation, ServingTarget, TrainerInput, VllmPod
from claas_contract.jobs import JobIdentity
from claas_contract.outcome import ExitCode, FailureReason, TrainerCommand
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.serving import HandoverKind, Probe
from claas_crds.v1alpha1.training import TrainingConfig
from claas_crds.v1alpha1.version import VersionVerdict
from claas_trainer.attempt.worker import attempt
from claas_trainer.messages.events import Reporter
from claas_trainer.messages.result import exit_code
from claas_trainer.paths import Paths
from claas_trainer.store.versions import VersionStore
from tests.contract.site import API_KEY, TOKEN, Site
from tests.contract.vllm_server import BASE_MODEL, REPOSITORY

pytestmark = pytest.mark.contract

NAME = "coder"
KEY = {"Authorization": f"Bearer {API_KEY}"}
RUN_TIMEOUT_SECONDS = 240.0
FAULTS = REPOSITORY / "tests" / "e2e" / "faults"
SECRET_TEXT = "zanzibar quagmire"


@dataclass
class Pod:
    """The folders that a trainer pod would have mounted, and the server it trains for."""

    root: Path
    site: Site

    def start(self, task: TrainerCommand, document: TrainerInput, hold_at: str = "") -> subprocess.Popen[str]:
        """Start the trainer as a process; its output is kept in `log`. At `hold_at` it stands still, once: see
        `tests/e2e/faults`."""
        environment = dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join([str(FAULTS), *sys.path]),
            "FAULT_POINT": hold_at,
            "FAULT_FOLDER": str(self.root),
            "CLAAS_STORAGE_DIRECTORY": str(self.paths.storage),
            "CLAAS_MODEL_DIRECTORY": str(self.paths.model),
            "CLAAS_SCRATCH_DIRECTORY": str(self.paths.scratch),
            "CLAAS_CONTROL_TOKEN_FILE": str(self.paths.control_token),
            "CLAAS_API_KEY_FILE": str(self.paths.api_key),
            "CLAAS_TERMINATION_MESSAGE_FILE": str(self.paths.termination_message),
            "CLAAS_PROGRESS_PORT": str(self.paths.progress_port),
        }
        with self.log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "claas_trainer", task.value, "--input", str(self._input(document))],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, TrainerResult]:
        code = process.wait(timeout=RUN_TIMEOUT_SECONDS)
        return code, TrainerResult.model_validate_json(self.paths.termination_message.read_text())

    def attempt(self, task: TrainerCommand, document: TrainerInput) -> tuple[int, TrainerResult]:
        """What the trainer's worker does, in this process; gives what the supervisor would make of it."""
        with self.log.open("a") as log, open(os.devnull, "wb") as nobody, contextlib.redirect_stdout(log):
            result = attempt(task, self._input(document), self.paths, Reporter(nobody.fileno()))
        return exit_code(result), result

    def _input(self, document: TrainerInput) -> Path:
        path = self.root / "input.json"
        path.write_text(document.model_dump_json(exclude_none=True))
        return path

    @property
    def paths(self) -> Paths:
        return Paths(
            storage=self.root / "storage",
            model=self.site.root,
            scratch=self.root / "scratch",
            control_token=self.site.companion.token_file,
            api_key=self.root / "api-key",
            termination_message=self.root / "termination-log",
            progress_port=0,
        )

    @property
    def log(self) -> Path:
        return self.root / "trainer.log"

    @property
    def store(self) -> VersionStore:
        return VersionStore(self.root / "storage" / "team" / NAME)

    def document(self, *, uid: str, parent: int, samples: list[dict[str, object]], attempt: int = 1) -> TrainerInput:
        (self.root / "samples.json").write_text(json.dumps(samples))
        pod = VllmPod(name="vllm-0", uid="pod-uid", url=self.site.server.url, storage_path=str(self.store.root))
        return self.initial().model_copy(
            update={
                "jobs": [JobIdentity(namespace="team", name=f"job-{uid}", uid=uid, attempt=attempt)],
                "parent": parent,
                "samples_file": str(self.root / "samples.json"),
                "training": TrainingConfig(learning_rate=5e-3, teacher_top_k=20),
                "serving": ServingTarget(
                    served_name=NAME,
                    pods=[pod],
                    has_control_token=True,
                    has_api_key=True,
                    probe=Probe(prompt="Hello", max_tokens=4),
                ),
            }
        )

    def initial(self) -> TrainerInput:
        return TrainerInput(
            adapter=AdapterIdentity(namespace="team", name=NAME, uid="adapter-uid", lora_id="user/coder"),
            model=ModelLocation(path="model"),
            lora=LoraSpec(rank=8, alpha=16),
            storage_path=f"team/{NAME}",
        )

    def ask(self, model: str, tokens: int) -> httpx.Response:
        """A recorded rollout: token ids and log-probabilities of what was sampled."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": SECRET_TEXT}],
            "max_tokens": tokens,
            "temperature": 1.0,
            "seed": 7,
            "logprobs": True,
            "return_token_ids": True,
        }
        return httpx.post(
            f"{self.site.server.url}/v1/chat/completions", json=body, headers=KEY, timeout=120, trust_env=False
        )


@pytest.fixture(scope="module")
def pod(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    root = tmp_path_factory.mktemp("trainer")
    (root / "api-key").write_text(API_KEY)
    (root / "scratch").mkdir()
    pod = Pod(root, site)
    code, result = pod.attempt(TrainerCommand.INIT, pod.initial())
    assert code == ExitCode.SUCCEEDED, result
    assert not result.already_published
    yield pod
    with control(pod) as http:
        http.delete(f"/claas/aliases/{NAME}").raise_for_status()


def control(pod: Pod) -> httpx.Client:
    """A client of the control routes."""
    headers = {"X-Claas-Token": TOKEN} | KEY
    return httpx.Client(base_url=pod.site.server.url, headers=headers, timeout=30, trust_env=False)


def recorded_sample(answer: httpx.Response) -> dict[str, object]:
    choice = answer.json()["choices"][0]
    return {
        "user_prompt": SECRET_TEXT,
        "response": choice["message"]["content"] or "?",
        "feedback": f"not so {SECRET_TEXT}, please",
        "prompt_token_ids": answer.json()["prompt_token_ids"],
        "response_token_ids": choice["token_ids"],
        "response_logprobs": [entry["logprob"] for entry in choice["logprobs"]["content"]],
    }


def hand_written() -> list[dict[str, object]]:
    return [{"user_prompt": SECRET_TEXT, "response": "sure", "feedback": f"less {SECRET_TEXT}"}]


def aliases(pod: Pod) -> str:
    """What the companion says it serves."""
    with control(pod) as http:
        return json.dumps(http.get("/claas/status").json()["aliases"])


def served_version(pod: Pod) -> str | None:
    answer = pod.ask(NAME, 4)
    assert answer.status_code == 200, answer.text
    version: str | None = answer.headers.get("x-claas-version")
    return version


def test_init_makes_version_0_once(pod: Pod) -> None:
    made = pod.store.read(0)
    code, again = pod.attempt(TrainerCommand.INIT, pod.initial())
    assert code == ExitCode.SUCCEEDED
    assert again.already_published
    assert again.version is not None
    assert again.version == made.published(f"team/{NAME}/versions/0")


def test_a_recorded_rollout_becomes_a_served_version_and_no_client_notices(pod: Pod) -> None:
    base = pod.ask(BASE_MODEL, 12)
    samples = [recorded_sample(base), *hand_written()]
    failures: list[str] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answer = pod.ask(BASE_MODEL, 8)
            if answer.status_code != 200:
                failures.append(answer.text)
            # The trainer, vLLM and the clients may have two cores between them.
            time.sleep(0.2)

    clients = [threading.Thread(target=client) for _ in range(2)]
    for thread in clients:
        thread.start()
    try:
        code, result = pod.finish(pod.start(TrainerCommand.RUN, pod.document(uid="uid-1", parent=0, samples=samples)))
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert code == ExitCode.SUCCEEDED, result
    assert failures == []
    assert result.version is not None
    assert (result.version.number, result.version.parent) == (1, 0)
    assert [job.uid for job in result.version.jobs] == ["uid-1"]
    assert result.swapped_pods == ["vllm-0"]
    assert (result.samples.recorded, result.samples.reconstructed) == (1, 1)
    prompts = result.samples.recorded_prompts, result.samples.server_prompts, result.samples.hints_inserted
    assert prompts == (1, 1, 1)
    # Recorded under the base model with B = 0: the policy that is trained is the one that answered.
    assert result.version.metrics["ratio_mean"] == pytest.approx(1.0, abs=0.02)
    timings = result.timings
    assert None not in (timings.prepare, timings.sleep, timings.step, timings.wake, timings.publish, timings.swap)
    assert timings.serving_gap is not None
    assert timings.step is not None
    assert timings.serving_gap >= timings.step
    assert served_version(pod) == f"{NAME}@1"
    made = pod.store.read(1)
    pod.store.verify(made)
    assert made.verdict.verdict is result.version.verdict is VersionVerdict.SERVED


def test_vllm_answers_with_the_version_as_transformers_does(pod: Pod) -> None:
    """The server computes in float32 here. In bfloat16 both round after each layer; 0.05 nats would do then."""
    body = {"model": NAME, "prompt": "Hello there", "max_tokens": 12, "temperature": 0, "logprobs": 1}
    url = f"{pod.site.server.url}/v1/completions"
    asked = {**body, "return_token_ids": True}
    answer = httpx.post(url, json=asked, headers=KEY, timeout=120, trust_env=False).json()["choices"][0]
    prompt = torch.tensor([answer["prompt_token_ids"]])
    served = torch.tensor(answer["logprobs"]["token_logprobs"])

    base = AutoModelForCausalLM.from_pretrained(pod.site.root / "model", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, pod.store.read(1).folder)
    greedy = adapted.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    assert greedy.tolist() == answer["token_ids"]
    whole = torch.cat([prompt, greedy.unsqueeze(0)], dim=1)

    def logprobs(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            logits = model(whole).logits[0, prompt.shape[1] - 1 : -1]
        found: torch.Tensor = logits.log_softmax(-1).gather(-1, greedy.unsqueeze(-1)).squeeze(-1)
        return found

    torch.testing.assert_close(served, logprobs(adapted), rtol=0, atol=1e-3)
    with adapted.disable_adapter():
        assert (served - logprobs(adapted)).abs().max() > 1e-2


def test_a_second_attempt_of_the_same_job_takes_no_second_step(pod: Pod) -> None:
    document = pod.document(uid="uid-1", parent=0, samples=hand_written(), attempt=2)
    code, result = pod.attempt(TrainerCommand.RUN, document)
    assert code == ExitCode.SUCCEEDED
    assert result.already_published
    assert result.version is not None
    assert result.version.number == 1
    assert pod.store.numbers() == [0, 1]
    assert result.samples.recorded == 1


def test_the_next_job_starts_from_the_parent_and_its_optimiser_state(pod: Pod) -> None:
    code, result = pod.attempt(TrainerCommand.RUN, pod.document(uid="uid-2", parent=1, samples=hand_written()))
    assert code == ExitCode.SUCCEEDED, result
    assert served_version(pod) == f"{NAME}@2"


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("response_token_ids", [10**6], "samples[1].response_token_ids[0]"),
        ("response", "", "samples[1].response"),
    ],
)
def test_a_wrong_sample_fails_before_any_pause_and_names_its_field(
    field: str, value: object, place: str, pod: Pod
) -> None:
    sample = hand_written()[0] | {field: value}
    before = aliases(pod)
    code, result = pod.attempt(
        TrainerCommand.RUN, pod.document(uid="uid-wrong", parent=0, samples=[*hand_written(), sample])
    )
    assert (code, result.reason) == (ExitCode.PERMANENT, FailureReason.INVALID_SAMPLE)
    assert place in result.message
    assert result.timings.sleep is None
    assert aliases(pod) == before


def test_a_wrong_control_token_fails_before_any_pause(pod: Pod) -> None:
    document = pod.document(uid="uid-token", parent=0, samples=hand_written())
    assert document.serving is not None
    without = document.model_copy(
        update={"serving": document.serving.model_copy(update={"has_control_token": False})}
    )
    code, result = pod.attempt(TrainerCommand.RUN, without)
    assert (code, result.reason) == (ExitCode.RETRYABLE, FailureReason.CONTROL_REFUSED)


def test_a_server_that_somebody_else_has_paused_is_left_alone(pod: Pod) -> None:
    with control(pod) as http:
        http.post("/pause", params={"mode": "keep"}).raise_for_status()
        try:
            code, result = pod.attempt(
                TrainerCommand.RUN, pod.document(uid="uid-asleep", parent=0, samples=hand_written())
            )
            assert http.get("/is_paused").json() == {"is_paused": True}
        finally:
            http.post("/resume").raise_for_status()
    assert (code, result.reason) == (ExitCode.RETRYABLE, FailureReason.ALREADY_ASLEEP)


def test_a_worker_that_is_killed_in_the_pause_leaves_the_server_awake_and_the_retry_steps_once(pod: Pod) -> None:
    document = pod.document(uid="uid-3", parent=2, samples=hand_written())
    process = pod.start(TrainerCommand.RUN, document, hold_at="stepping")
    with control(pod) as http:
        deadline = time.monotonic() + RUN_TIMEOUT_SECONDS
        while not (pod.root / "stepping").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        assert http.get("/is_sleeping").json() == {"is_sleeping": True}
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), 9)
        killed = time.monotonic()
        code, result = pod.finish(process)
        assert time.monotonic() - killed < 15
        assert http.get("/is_sleeping").json() == {"is_sleeping": False}
    assert (code, result.succeeded) == (ExitCode.RETRYABLE, False)
    assert pod.store.numbers() == [0, 1, 2]
    retry = pod.document(uid="uid-3", parent=2, samples=hand_written(), attempt=2)
    code, result = pod.attempt(TrainerCommand.RUN, retry)
    assert code == ExitCode.SUCCEEDED, result
    assert pod.store.numbers() == [0, 1, 2, 3]
    assert not list(pod.store.versions.glob(".staging-*"))


def test_a_step_beside_the_server_pauses_nothing_and_tells_what_it_cost(pod: Pod) -> None:
    parent = pod.store.numbers()[-1]
    document = pod.document(uid="uid-beside", parent=parent, samples=hand_written())
    assert document.serving is not None
    serving = document.serving.model_copy(update={"handover": HandoverKind.SHARE, "max_slowdown_percent": 90})
    failures: list[str] = []
    paused: list[bool] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answer = pod.ask(BASE_MODEL, 16)
            if answer.status_code != 200:
                failures.append(answer.text)

    traffic = threading.Thread(target=client)
    traffic.start()
    try:
        process = pod.start(TrainerCommand.RUN, document.model_copy(update={"serving": serving}))
        with control(pod) as http:
            while process.poll() is None:
                paused.append(http.get("/is_sleeping").json()["is_sleeping"])
                time.sleep(0.1)
        code, result = pod.finish(process)
    finally:
        stop.set()
        traffic.join()
    assert code == ExitCode.SUCCEEDED, result
    assert failures == []
    assert True not in paused
    assert result.timings.serving_gap == 0
    assert (result.timings.sleep, result.timings.wake) == (None, None)
    assert result.version is not None
    # Absent where the step was over too soon to tell.
    assert 0 <= result.version.metrics.get("serving_slowdown_percent", 0) <= 100
    assert served_version(pod) == f"{NAME}@{parent + 1}"


def test_log_probabilities_computed_under_the_version_that_answered_are_those_that_vllm_recorded(pod: Pod) -> None:
    answered = pod.store.numbers()[-1]
    answer = pod.ask(NAME, 16)
    assert answer.headers["x-claas-version"] == f"{NAME}@{answered}"
    code, _ = pod.attempt(
        TrainerCommand.RUN, pod.document(uid="uid-between", parent=answered, samples=hand_written())
    )
    assert code == ExitCode.SUCCEEDED
    recorded = recorded_sample(answer)
    computed = {name: value for name, value in recorded.items() if name != "response_logprobs"} | {
        "version": answered
    }
    results = []
    for uid, sample in (("uid-recorded", recorded), ("uid-computed", computed)):
        code, result = pod.attempt(TrainerCommand.RUN, pod.document(uid=uid, parent=answered + 1, samples=[sample]))
        assert code == ExitCode.SUCCEEDED, result
        assert result.version is not None
        results.append(result)
    counts = [(each.samples.recorded, each.samples.computed, each.samples.reconstructed) for each in results]
    assert counts == [(1, 0, 0), (0, 1, 0)]
    metrics = [each.version.metrics for each in results if each.version is not None]
    assert abs(metrics[0]["ratio_max"] - 1) > 1e-3, "the version between has moved the policy"
    for name in ("loss", "ratio_mean", "ratio_max", "grad_norm"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], rel=2e-3), name


def test_no_text_of_a_sample_was_logged_by_anything_above(pod: Pod) -> None:
    log = pod.log.read_text()
    assert "prepared" in log
    assert SECRET_TEXT not in log
    assert "zanzibar" not in log
