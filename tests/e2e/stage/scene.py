"""One adapter, served by a real vLLM, and what tests do with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx
from pydantic import JsonValue

from claas_contract.jobs import names_any
from claas_kube.objects.meta import Manifest
from claas_kube.objects.pods import Pod
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.objects.workloads import Lease
from claas_operator.plan.naming import JOB_UID_LABEL
from claas_operator.plan.serving_lease import lease_name, read_lease
from claas_trainer.store.versions import StoredVersion, VersionStore
from tests.builders.resources import DEPLOYMENT, distill_job
from tests.stack import resources
from tests.stack.install import OPERATOR_DEPLOYMENT, SYSTEM_NAMESPACE, Stack
from tests.stack.resources import wait_for
from tests.stack.serving import Serving

FAULTS_CONFIG_MAP = "faults"
FAULTS_MOUNT = "/opt/faults"
FAULT_FOLDER = "faults"
STORAGE_MOUNT = "/var/lib/claas/storage"


@dataclass(frozen=True)
class Scene:
    """A served adapter in a namespace of its own."""

    stack: Stack
    serving: Serving
    adapter_name: str

    @property
    def namespace(self) -> str:
        return self.serving.namespace

    @property
    def store(self) -> VersionStore:
        """The adapter's versions, on the volume itself."""
        return VersionStore(self.serving.volume / self.namespace / self.adapter_name)

    def url(self) -> str:
        """The address of the vLLM pod."""
        return resources.vllm_url(self.stack, self.namespace)

    def vllm_pod(self) -> Pod:
        """The ready vLLM pod."""
        return resources.vllm_pods(self.stack, self.namespace)[0]

    def adapter(self) -> AdapterObject:
        """The LoraAdapter as it is."""
        return resources.adapter(self.stack, self.namespace, self.adapter_name)

    def served(self) -> int:
        """The version in service, by status."""
        version = self.adapter().status.served_version
        assert version is not None
        return version

    def apply(
        self, name: str, samples: Sequence[Mapping[str, JsonValue]] | None = None, **spec: JsonValue
    ) -> JobObject:
        """Apply a DistillJob; `source` among `spec` replaces inline samples."""
        source = cast(Mapping[str, JsonValue] | None, spec.pop("source", None))
        manifest = distill_job(name, self.namespace, self.adapter_name, samples, source=source, **spec)
        self.stack.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
        return self.job(name)

    def job(self, name: str) -> JobObject:
        """A DistillJob as it is."""
        return resources.job(self.stack, self.namespace, name)

    def finished(self, name: str, timeout_seconds: float = 120) -> JobObject:
        """The job, once it is Complete or Failed."""
        return resources.wait_finished(self.stack, self.namespace, name, timeout_seconds)

    def trainers(self, job: JobObject) -> list[Pod]:
        """All trainer pods of a job, those that have ended too."""
        return resources.pods(self.stack, self.namespace, f"{JOB_UID_LABEL}={job.metadata.uid}")

    def running_trainer(self, job: JobObject) -> Pod:
        """The trainer pod that runs."""
        running = [pod for pod in self.trainers(job) if pod.status.phase == "Running"]
        assert len(running) == 1, [pod.metadata.name for pod in running]
        return running[0]

    def versions_of(self, job: JobObject) -> list[StoredVersion]:
        """Versions on the volume that a job made."""
        versions = [self.store.read(number) for number in self.store.numbers()]
        return [version for version in versions if names_any(version.record.jobs, {job.metadata.uid})]

    def answered_by(
        self, url: str | None = None, timeout_seconds: float = 30, headers: Mapping[str, str] | None = None
    ) -> str:
        """Ask one question of the served name; which version answered, by the companion's header."""
        answer = httpx.post(
            f"{url or self.url()}/v1/completions",
            json={"model": self.adapter_name, "prompt": "Hello", "max_tokens": 4},
            headers=headers,
            timeout=timeout_seconds,
            trust_env=False,
        )
        answer.raise_for_status()
        return answer.headers["x-claas-version"]

    def lease_holder(self) -> str:
        """The UID of the DistillJob that holds the Deployment's lease; empty when it is free."""
        name = lease_name(DEPLOYMENT)
        text = self.stack.kubectl("get", "lease", name, "-n", self.namespace, "-o", "json", "--ignore-not-found")
        if not text.strip():
            return ""
        return read_lease(Lease.model_validate_json(text)).holder or ""

    def is_asleep(self, url: str) -> bool:
        """Whether vLLM says that it sleeps."""
        answer = httpx.get(
            f"{url}/is_sleeping", headers={"X-Claas-Token": self.serving.token}, timeout=10, trust_env=False
        )
        return bool(answer.raise_for_status().json()["is_sleeping"])

    def seconds_until_answer(self, url: str, limit_seconds: float) -> float:
        """How long it takes until the served name answers; raises when it is longer than the limit."""
        began = time.monotonic()
        self.answered_by(url, limit_seconds)
        return time.monotonic() - began

    def patch_adapter(self, patch: Manifest) -> None:
        """Merge something into the adapter."""
        self._patch(f"loraadapter/{self.adapter_name}", patch)

    def patch_job(self, name: str, patch: Manifest) -> None:
        """Merge something into a DistillJob."""
        self._patch(f"distilljob/{name}", patch)

    def _patch(self, what: str, patch: Manifest) -> None:
        self.stack.kubectl("patch", what, "-n", self.namespace, "--type=merge", "-p", json.dumps(patch))

    @contextmanager
    def held_at(self, point: str, *, max_pause_seconds: int = 60) -> Iterator[Fault]:
        """Every trainer started within the block stands still at a point of its step, the first time."""
        before = self.adapter().spec
        folder = self.serving.volume / FAULT_FOLDER
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        for old in folder.iterdir():
            old.unlink()
        self.patch_adapter(
            {
                "spec": {
                    "serving": {"maxPauseSeconds": max_pause_seconds},
                    "trainer": {
                        "env": [
                            {"name": "PYTHONPATH", "value": f"{FAULTS_MOUNT}:/opt/claas"},
                            {"name": "FAULT_POINT", "value": point},
                            {"name": "FAULT_FOLDER", "value": f"{STORAGE_MOUNT}/{FAULT_FOLDER}"},
                        ],
                        "volumes": [{"name": "faults", "configMap": {"name": FAULTS_CONFIG_MAP}}],
                        "volumeMounts": [{"name": "faults", "mountPath": FAULTS_MOUNT}],
                    },
                }
            }
        )
        try:
            yield Fault(folder, point)
        finally:
            (folder / f"{point}.go").touch()
            self.patch_adapter(
                {
                    "spec": {
                        "serving": {"maxPauseSeconds": before.serving.max_pause_seconds},
                        "trainer": {"env": [], "volumes": [], "volumeMounts": []},
                    }
                }
            )


@dataclass(frozen=True)
class Fault:
    """A point at which a trainer stands still."""

    folder: Path
    point: str

    def reached(self, timeout_seconds: float = 90) -> None:
        """Wait until a trainer stands there."""
        wait_for(f"a trainer at {self.point}", (self.folder / self.point).exists, timeout_seconds)

    def go_on(self) -> None:
        """Let the trainer go on."""
        (self.folder / f"{self.point}.go").touch()


OPERATOR_PODS = "app.kubernetes.io/component=operator"
GATEWAY_PODS = "app.kubernetes.io/component=gateway"


def operator_pod(stack: Stack) -> Pod:
    """The operator's pod, once it is ready."""
    return _ready_pod(stack, OPERATOR_PODS)


def gateway_pod(stack: Stack) -> Pod:
    """The gateway's pod, once it is ready."""
    return _ready_pod(stack, GATEWAY_PODS)


def _ready_pod(stack: Stack, selector: str) -> Pod:
    ready = wait_for(
        f"a pod with {selector}",
        lambda: [pod for pod in resources.pods(stack, SYSTEM_NAMESPACE, selector) if pod.ready],
        90,
    )
    return ready[0]


def scale_operator(stack: Stack, replicas: int) -> None:
    """Scale the operator, and wait until it is so."""
    stack.kubectl("scale", "deployment", OPERATOR_DEPLOYMENT, "-n", SYSTEM_NAMESPACE, f"--replicas={replicas}")
    if replicas:
        operator_pod(stack)
        return
    wait_for("the operator to be gone", lambda: not resources.pods(stack, SYSTEM_NAMESPACE, OPERATOR_PODS), 60)
