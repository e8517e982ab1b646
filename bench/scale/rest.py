"""Finished jobs at rest: what the operator takes for them, from its start."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from bench.scale.bars import Figure, at_most, below
from bench.scale.load import MEGABYTES, WOKEN_SECONDS, adapter_name, adapters_ready, samples_of
from bench.scale.sleeper import Sleeper
from bench.scale.usage import Usage
from claas_contract.jobs import JobIdentity
from claas_crds import GROUP
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.resources import ADAPTERS, DISTILL_JOBS
from tests.cluster.audit import AuditLog, Calls, Request
from tests.simulation.operator_process import OPERATOR_NAMESPACE, OperatorProcess
from tests.simulation.scene import Scene

PERCENT_OF_A_CORE = 5
_SETTLE_SECONDS = 40.0
"""Longer than from one look at everything to the next."""


@dataclass(frozen=True)
class Finished:
    """How much there is."""

    jobs: int
    adapters: int
    deployments: int
    kilobytes: float
    """Of each job's inline samples, in 1,000 bytes."""


@dataclass(frozen=True)
class Still:
    """What was measured."""

    woken_after_seconds: float | None
    """From the new operator's lead until it woke a vLLM whose trainer had died while there was none."""
    serving_after_seconds: float | None
    """From then until all adapters were seen to serve their newest versions; None: not in time."""
    seconds: float
    cpu_seconds: float
    usage: Usage
    calls: Calls
    """In those seconds, but for the leader's Lease."""
    calls_about_jobs: int
    """Of them those about one job, or what belongs to it."""

    def figures(self) -> list[Figure]:
        """With their bars."""
        minutes = self.seconds / 60
        return [
            Figure(
                "asleep until woken, from the new operator's lead",
                self.woken_after_seconds,
                "s",
                at_most(WOKEN_SECONDS),
            ),
            Figure("until all adapters serve, from then", self.serving_after_seconds, "s"),
            Figure("operator's memory, peak since its start", self.usage.peak_mb, "MB", below(MEGABYTES)),
            Figure("operator's memory at rest", self.usage.resident_mb, "MB"),
            Figure(
                "operator's processor time at rest",
                100 * self.cpu_seconds / self.seconds,
                "% of a core",
                below(PERCENT_OF_A_CORE),
            ),
            Figure("API calls a minute", self.calls.total / minutes, ""),
            Figure("of them about one finished job", self.calls_about_jobs / minutes, "", at_most(0)),
            Figure("watches begun a minute", self.calls.watches / minutes, ""),
        ]


@dataclass
class Rest:
    """A namespace with adapters that serve and their finished jobs; nobody operates yet."""

    finished: Finished
    scene: Scene
    operator: OperatorProcess
    audit: AuditLog
    sleeper: Sleeper

    @classmethod
    def prepare(
        cls,
        finished: Finished,
        scene: Scene,
        sleeping: Scene,
        operator: OperatorProcess,
        audit: AuditLog,
        seconds: float,
        say: Callable[[str], None],
    ) -> Rest:
        """Have an operator make adapters, one finished job and one whose step pauses serving; stop it, let the step's
        trainer die, and add the other jobs as that operator would have left them."""
        operator.start_leading()
        adapters_ready(scene, finished.adapters, finished.deployments, seconds)
        scene.apply_job("pattern", adapter_name(0))
        pattern = scene.wait_until("pattern", "Complete", seconds)
        manifest = scene.get(DISTILL_JOBS, "pattern")
        assert manifest is not None
        sleeper = Sleeper.put_to_sleep(sleeping, "sleeper", seconds)
        operator.stop()
        sleeper.die()
        rest = cls(finished, scene, operator, audit, sleeper)
        say(f"making {finished.jobs:,} finished jobs")
        rest._put(pattern, manifest)
        return rest

    def run(self, seconds: float, patience_seconds: float) -> Still:
        """Start an operator on it, let it settle, and look at it for so many seconds."""
        self.operator.start_leading()
        self.sleeper.died = began = time.monotonic()
        serving = self._wait_until_serving(began + patience_seconds)
        time.sleep(_SETTLE_SECONDS)
        list(self.audit.new())
        before, at = Usage.of(self.operator.pid), time.monotonic()
        time.sleep(seconds)
        after, elapsed = Usage.of(self.operator.pid), time.monotonic() - at
        requests = [each for each in self.audit.new() if each.namespace != OPERATOR_NAMESPACE]
        return Still(
            woken_after_seconds=self.sleeper.woken_after_seconds,
            serving_after_seconds=serving - began if serving is not None else None,
            seconds=elapsed,
            cpu_seconds=after.cpu_seconds - before.cpu_seconds,
            usage=after,
            calls=Calls.of(requests),
            calls_about_jobs=sum(about_a_job(each) for each in requests),
        )

    def _wait_until_serving(self, deadline: float) -> float | None:
        """When all adapters served their newest versions; None at the deadline."""
        of_each = self.finished.jobs // self.finished.adapters
        while time.monotonic() < deadline:
            self.scene.simulation.check()
            found = [AdapterObject.model_validate(each) for each in self.scene.objects(ADAPTERS)]
            awake = self.sleeper.woken_after_seconds is not None
            if awake and all((each.status.served_version or 0) >= of_each for each in found):
                return time.monotonic()
            time.sleep(1)
        return None

    def _put(self, pattern: JobObject, manifest: Manifest) -> None:
        """Add finished jobs like one that is: past the API server, which would take minutes to let them in."""
        with httpx.Client(base_url=self.scene.simulation.cluster.etcd_url, timeout=30) as etcd:
            for number in range(self.finished.jobs):
                name, uid = f"job-{number}", str(uuid.uuid4())
                adapter = adapter_name(number % self.finished.adapters)
                job = JobIdentity(namespace=self.scene.namespace, name=name, uid=uid, attempt=1)
                status = self._status(pattern.status, job, adapter)
                metadata = {**_fields(manifest, "metadata"), "name": name, "uid": uid}
                metadata.pop("resourceVersion")
                spec = {"adapterRef": {"name": adapter}, "samples": {"inline": samples_of(self.finished.kilobytes)}}
                document = {
                    **manifest,
                    "metadata": metadata,
                    "spec": {**_fields(manifest, "spec"), **spec},
                    "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
                }
                key = f"/registry/{GROUP}/distilljobs/{self.scene.namespace}/{name}"
                pair = {"key": _encoded(key), "value": _encoded(json.dumps(document))}
                etcd.post("/v3/kv/put", json=pair).raise_for_status()

    def _status(self, pattern: DistillJobStatus, job: JobIdentity, adapter: str) -> DistillJobStatus:
        """Publish a job's version, and say so as the operator does."""
        volume, folder = self.scene.simulation.volume, f"{job.namespace}/{adapter}"
        parent = volume.versions(job.namespace, folder)[-1].number
        version = volume.publish(job.namespace, folder, job, parent)
        return pattern.model_copy(
            update={
                "parent_version": parent,
                "produced_version": version.number,
                "produced_path": version.path,
                "produced_digest": version.digest,
                "published_time": version.created,
                "completion_time": datetime.now(UTC),
                "trainer_job": f"{job.name}-1",
            }
        )


def _fields(manifest: Manifest, name: str) -> Manifest:
    found = manifest[name]
    assert isinstance(found, dict)
    return found


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def about_a_job(request: Request) -> bool:
    """Whether a request asks for one DistillJob, or for what belongs to one."""
    one = request.resource.startswith("distilljobs") and request.name != ""
    return one or "claas.dev/job-uid" in request.selector
