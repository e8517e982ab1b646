"""Many jobs at once: how fast they are admitted and completed, by how many requests, and whether a vLLM that sleeps
is woken meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import JsonValue

from bench.scale.bars import Figure, at_least, at_most, below
from bench.scale.progress import Progress
from bench.scale.sleeper import Sleeper
from bench.scale.usage import Usage, processor_seconds, taken_since
from claas_crds import API_VERSION
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import AdapterObject
from claas_kube.resources import ADAPTERS, DISTILL_JOBS
from tests.cluster.audit import AuditLog, Calls
from tests.simulation.cluster_api import METADATA_ONLY
from tests.simulation.operator_process import OPERATOR_NAMESPACE, OperatorProcess
from tests.simulation.scene import Scene, holds

_SAMPLES_OF_A_JOB = 16
_CREATORS = 8
"""Requests that apply jobs at a time."""
_SETTLE_SECONDS = 3.0
"""What may follow after the last job's completion and belongs to it."""
ADMITTED_PER_SECOND, CALLS, WRITES, WOKEN_SECONDS, MEGABYTES = 40, 25, 12, 5, 300


@dataclass(frozen=True)
class Size:
    """How much there is to do."""

    jobs: int
    adapters: int
    deployments: int
    kilobytes: float
    """Of each job's inline samples, in 1,000 bytes."""
    sleepers: int
    """How many vLLM pods sleep until their trainers die, at moments spread over the load."""


@dataclass(frozen=True)
class Outcome:
    """What came of a load."""

    size: Size
    created_per_second: float
    admitted_per_second: float | None
    """From the first apply to the last job's first status; None when not all had one."""
    completed_per_second: float | None
    completed: int
    failed: int
    seconds: float
    calls: Calls
    """All requests of the operator from the first apply until the last job was done, but for the leader's Lease and
    what the sleepers cost."""
    woken_after_seconds: tuple[float | None, ...]
    """Of each sleeper whose trainer has died; None while it sleeps."""
    usage: Usage
    processor_seconds: dict[str, float]

    @property
    def title(self) -> str:
        """What was done, in a line."""
        size = self.size
        many = f"{size.jobs:,} jobs of {size.kilobytes:g} kB on {size.adapters} adapters of {size.deployments} pods"
        return f"{many}, in {self.seconds:.0f} s"

    @property
    def per_job(self) -> float | None:
        """Reads and writes for each completed job."""
        return self.calls.total / self.completed if self.completed else None

    @property
    def writes_per_job(self) -> float | None:
        """Writes for each completed job."""
        return self.calls.writes / self.completed if self.completed else None

    @property
    def cpu_per_job(self) -> float | None:
        """The operator's, in milliseconds for each completed job."""
        return 1000 * self.processor_seconds["operator"] / self.completed if self.completed else None

    def figures(self) -> list[Figure]:
        """With their bars."""
        woken = [each for each in self.woken_after_seconds if each is not None]
        all_woken = len(woken) == len(self.woken_after_seconds)
        return [
            Figure("jobs completed", self.completed, f"of {self.size.jobs:,}", at_least(self.size.jobs)),
            Figure("jobs applied", self.created_per_second, "a second"),
            Figure("jobs admitted", self.admitted_per_second, "a second", at_least(ADMITTED_PER_SECOND)),
            Figure("jobs completed, from first apply to last", self.completed_per_second, "a second"),
            Figure("API calls a job", self.per_job, "", at_most(CALLS)),
            Figure("of them writes", self.writes_per_job, "", at_most(WRITES)),
            Figure("watches begun meanwhile", self.calls.watches, ""),
            Figure(
                f"asleep until woken, longest of {len(self.woken_after_seconds)}",
                max(woken) if all_woken and woken else None,
                "s",
                at_most(WOKEN_SECONDS),
            ),
            Figure("operator's memory, peak", self.usage.peak_mb, "MB", below(MEGABYTES)),
            Figure("operator's processor time a job", self.cpu_per_job, "ms"),
            *(
                Figure(f"processor time, {side}", seconds / self.seconds, "cores")
                for side, seconds in self.processor_seconds.items()
            ),
        ]


@dataclass
class Load:
    """A namespace with Deployments and adapters that are ready, and sleepers in another; jobs are yet to come."""

    size: Size
    scene: Scene
    operator: OperatorProcess
    audit: AuditLog
    sleepers: list[Sleeper]

    @classmethod
    def prepare(
        cls, size: Size, scene: Scene, sleeping: Scene, operator: OperatorProcess, audit: AuditLog, seconds: float
    ) -> Load:
        """Make all but the jobs; fails when the adapters are not ready in so many seconds."""
        adapters_ready(scene, size.adapters, size.deployments, seconds)
        sleepers = [Sleeper.put_to_sleep(sleeping, f"sleeper-{i}", seconds) for i in range(size.sleepers)]
        return cls(size, scene, operator, audit, sleepers)

    def run(self, seconds: float, say: Callable[[str], None]) -> Outcome:
        """Apply the jobs and follow them until all are done, or for so many seconds."""
        simulation, progress = self.scene.simulation, Progress(self.scene.namespace)
        following = simulation.spawn(progress.follow(simulation.api))
        list(self.audit.new())
        used = processor_seconds(simulation.cluster, self.operator.pid)
        began = time.monotonic()
        creating = simulation.spawn(self._create())
        waking = list(self.sleepers)
        told = 0.0
        while time.monotonic() < began + seconds:
            simulation.check()
            for done in (each for each in (following, creating) if each.done()):
                done.result()
            if waking and self._moment(len(self.sleepers) - len(waking), progress):
                waking.pop(0).die()
            awake = all(each.woken_after_seconds is not None for each in self.sleepers)
            if progress.ended == self.size.jobs and awake:
                break
            if time.monotonic() > told + 5:
                told = time.monotonic()
                say(
                    f"{told - began:5.0f} s: {len(progress.created)} applied, {len(progress.admitted)} admitted, "
                    f"{progress.ended} ended"
                )
            time.sleep(0.05)
        ended = time.monotonic()
        taken = taken_since(used, processor_seconds(simulation.cluster, self.operator.pid))
        time.sleep(_SETTLE_SECONDS)
        following.cancel()
        creating.cancel()
        elsewhere = {OPERATOR_NAMESPACE, *(pod.server.namespace for pod in (each.pod for each in self.sleepers))}
        return Outcome(
            size=self.size,
            created_per_second=_rate(progress.created, began, len(progress.created)) or 0.0,
            admitted_per_second=_rate(progress.admitted, began, self.size.jobs),
            completed_per_second=_rate(progress.succeeded, began, self.size.jobs),
            completed=len(progress.succeeded),
            failed=len(progress.failed),
            seconds=ended - began,
            calls=Calls.of(each for each in self.audit.new() if each.namespace not in elsewhere),
            woken_after_seconds=tuple(each.woken_after_seconds for each in self.sleepers if each.died is not None),
            usage=Usage.of(self.operator.pid),
            processor_seconds=taken,
        )

    def _moment(self, number: int, progress: Progress) -> bool:
        """Whether the time has come for a sleeper's trainer to die: from the midst of the apply to the last job."""
        share = (number + 0.5) / self.size.sleepers
        done = (len(progress.created) + progress.ended) / (2 * self.size.jobs)
        return done >= share

    async def _create(self) -> None:
        samples = samples_of(self.size.kilobytes)
        numbers = iter(range(self.size.jobs))

        async def create() -> None:
            for number in numbers:
                job: Manifest = {
                    "apiVersion": API_VERSION,
                    "kind": "DistillJob",
                    "metadata": {"name": f"job-{number}"},
                    "spec": {
                        "adapterRef": {"name": adapter_name(number % self.size.adapters)},
                        "samples": {"inline": samples},
                    },
                }
                api = self.scene.simulation.api
                await api.create(DISTILL_JOBS, self.scene.namespace, job, accept=METADATA_ONLY)

        await asyncio.gather(*(create() for _ in range(_CREATORS)))


def adapter_name(number: int) -> str:
    """An adapter's name."""
    return f"adapter-{number}"


def adapters_ready(scene: Scene, adapters: int, deployments: int, seconds: float) -> None:
    """Deployments of one pod each, and adapters on them; returns when all serve. Fails after so many seconds."""
    for number in range(deployments):
        scene.serve(f"vllm-{number}")
    for number in range(adapters):
        scene.apply_adapter(adapter_name(number), f"vllm-{number % deployments}")

    def ready() -> bool:
        found = [AdapterObject.model_validate(each) for each in scene.objects(ADAPTERS)]
        return sum(holds(each.status.conditions, "Ready") for each in found) == adapters

    scene.wait(f"{adapters} ready adapters", ready, seconds, every_seconds=0.5)


def samples_of(kilobytes: float) -> list[JsonValue]:
    """Inline samples of that size in all."""
    each = max(10, int(kilobytes * 1000 / _SAMPLES_OF_A_JOB / 3) - 20)
    words = ("the river bends toward the old town and nobody asks why " * (each // 50 + 1))[:each]
    return [{"user_prompt": words, "response": words, "feedback": words} for _ in range(_SAMPLES_OF_A_JOB)]


def _rate(times: dict[str, float], began: float, wanted: int) -> float | None:
    """How many came each second; None when some did not come."""
    return len(times) / (max(times.values()) - began) if times and len(times) >= wanted else None
