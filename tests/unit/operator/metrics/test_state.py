"""The gauges that are made at each scrape."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_operator.keys import Key, Kind
from claas_operator.metrics.known_adapters import KnownAdapters
from claas_operator.metrics.state import ClusterView, Sleepers, StateCollector
from claas_operator.plan.world import LeaseWorld
from tests.builders.world import (
    ASLEEP,
    NOW,
    REFUSED,
    UNREACHABLE,
    ago,
    condition,
    lease_world,
    recorded,
    trainer_pod,
)

LEASE = Key(Kind.LEASE, "team", "claas-serving-vllm")


@dataclass(frozen=True)
class FakeJob:
    adapter: str = "tone"
    phase: JobPhase | None = JobPhase.QUEUED
    created: datetime | None = NOW
    namespace: str = "team"


def status(*, ready: bool = True, reason: str = "Serving", served: int | None = 2) -> LoraAdapterStatus:
    return LoraAdapterStatus(conditions=[condition("Ready", ready, reason)], latest_version=3, served_version=served)


class Scene:
    """A registry with the state of a few objects."""

    def __init__(self) -> None:
        self.jobs: list[FakeJob] = []
        self.adapters = KnownAdapters()
        self.sleepers = Sleepers()
        self.failing: dict[tuple[str, str], int] = {}
        self.registry = CollectorRegistry()
        view = ClusterView(
            lambda: self.jobs, self.adapters.all, lambda namespace, name: self.failing.get((namespace, name), 0)
        )
        self.registry.register(StateCollector(view, self.sleepers, lambda: NOW))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"namespace": "team", **labels})


def test_jobs_are_told_by_phase_and_those_that_wait_by_deployment() -> None:
    scene = Scene()
    scene.adapters.take("team", "tone", "vllm", status(), NOW)
    scene.adapters.take("team", "style", "vllm", status(), NOW)
    scene.adapters.take("team", "idle", "other", status(), NOW)
    scene.jobs = [
        FakeJob(created=ago(30)),
        FakeJob(adapter="style", created=ago(90)),
        FakeJob(phase=JobPhase.TRAINING, created=ago(500)),
        FakeJob(phase=JobPhase.SUSPENDED, created=ago(900)),
        FakeJob(phase=None),
        FakeJob(adapter="nobody"),
    ]
    phases = {phase: scene.value("claas_jobs", phase=phase) for phase in ("Queued", "Training", "Pending", "Failed")}
    assert phases == {"Queued": 3, "Training": 1, "Pending": 1, "Failed": None}
    assert scene.value("claas_jobs_waiting", deployment="vllm") == 3
    assert scene.value("claas_jobs_oldest_wait_seconds", deployment="vllm") == 90
    assert scene.value("claas_jobs_waiting", deployment="other") == 0
    assert scene.value("claas_jobs_oldest_wait_seconds", deployment="other") == 0


def test_an_adapters_versions_readiness_and_failing_loads_are_told_until_it_is_gone() -> None:
    scene = Scene()
    scene.adapters.take("team", "tone", "vllm", status(ready=False, reason="LoadFailed", served=None), NOW)
    scene.failing["team", "tone"] = 2
    told = {
        name: scene.value(f"claas_adapter_{name}", adapter="tone")
        for name in ("ready", "latest_version", "served_version", "failing_loads")
    }
    assert told == {"ready": 0, "latest_version": 3, "served_version": None, "failing_loads": 2}
    scene.adapters.forget("team", "tone")
    assert scene.value("claas_adapter_ready", adapter="tone") is None


def test_an_adapter_whose_status_can_not_be_read_is_not_ready() -> None:
    scene = Scene()
    scene.adapters.take("team", "tone", "vllm", LoraAdapterStatus(), NOW)
    assert scene.value("claas_adapter_ready", adapter="tone") == 0


WORLDS: list[tuple[str, LeaseWorld, bool | None]] = [
    ("a dead step's pod sleeps", lease_world(pods=(recorded(server=ASLEEP),)), True),
    ("its trainer lives", lease_world(pods=(recorded(server=ASLEEP),), alive=(trainer_pod("t"),)), False),
    ("it is awake", lease_world(), False),
    ("it does not answer", lease_world(pods=(recorded(server=UNREACHABLE),)), None),
    ("it refuses the token", lease_world(pods=(recorded(server=REFUSED),)), True),
    ("it is gone", lease_world(pods=(recorded(server=ASLEEP, exists=False),)), False),
    ("one of two sleeps", lease_world(pods=(recorded(server=UNREACHABLE), recorded("b", server=ASLEEP))), True),
    ("nobody holds the Lease", lease_world(free=True), False),
]


@pytest.mark.parametrize(("world", "asleep"), [row[1:] for row in WORLDS], ids=[row[0] for row in WORLDS])
def test_a_vllm_is_asleep_without_a_step_when_its_lease_says_so(world: LeaseWorld, asleep: bool | None) -> None:
    assert world.asleep_without_step is asleep


def test_how_long_a_vllm_sleeps_without_a_step_is_told_from_when_it_was_first_seen() -> None:
    scene = Scene()
    asleep = "claas_vllm_asleep_without_step_seconds"
    assert scene.value(asleep, deployment="vllm") is None
    scene.adapters.take("team", "tone", "vllm", status(), NOW)
    assert scene.value(asleep, deployment="vllm") == 0
    scene.sleepers.note(LEASE, "vllm", True, ago(40))
    scene.sleepers.note(LEASE, "vllm", True, ago(10))
    scene.sleepers.note(LEASE, "vllm", None, ago(5))
    assert scene.value(asleep, deployment="vllm") == 40
    scene.adapters.forget("team", "tone")
    assert scene.value(asleep, deployment="vllm") == 40, "its adapter may be gone meanwhile"
    scene.sleepers.note(LEASE, "vllm", False, NOW)
    assert scene.value(asleep, deployment="vllm") is None


def test_a_vllm_that_somebody_else_put_to_sleep_is_told_too() -> None:
    scene = Scene()
    for seconds in (60, 20):
        scene.adapters.take("team", "tone", "vllm", status(ready=False, reason="Asleep"), NOW - timedelta(0, seconds))
    assert scene.value("claas_vllm_asleep_without_step_seconds", deployment="vllm") == 60
    scene.adapters.take("team", "tone", "vllm", status(), NOW)
    assert scene.value("claas_vllm_asleep_without_step_seconds", deployment="vllm") == 0
