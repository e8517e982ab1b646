"""The real cluster with the operator in it, and one namespace with a served adapter for all tests here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from claas_crds.v1alpha1.serving import HandoverKind
from tests.builders.resources import lora_adapter
from tests.cluster import cluster
from tests.e2e.stage.handovers import HANDOVERS
from tests.e2e.stage.scene import FAULTS_CONFIG_MAP, Scene
from tests.stack import install, resources, serving
from tests.stack.install import Stack
from tests.stack.resources import wait_for

NAMESPACE = "e2e"
ADAPTER = "tone"
VOLUME_MEBIBYTES = 256
TRAINING = {"learning_rate": 5e-3, "teacher_top_k": 20, "weight_decay": 0.0}


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The whole product. A cluster that was up before the tests stays up; one they started goes down."""
    if cluster.uses_current_context():
        pytest.skip(
            "CLUSTER=current: these tests kill processes on the node, which they only do on their own cluster"
        )
    was_up = cluster.status().is_up
    found = install.bring_up(lambda message: print(message, file=sys.stderr))
    yield found
    if not was_up and not os.environ.get("KEEP_CLUSTER"):
        cluster.down()


@pytest.fixture(scope="session")
def scene(stack: Stack) -> Iterator[Scene]:
    """A namespace that enforces the restricted pod security standard, a vLLM on the CPU, one adapter in service."""
    serving.remove(stack, serving.Serving(NAMESPACE, "", serving.volume_folder(NAMESPACE)))
    served = serving.create(stack, NAMESPACE, limit_mebibytes=VOLUME_MEBIBYTES)
    faults = (Path(__file__).parent / "faults" / "sitecustomize.py").read_text()
    stack.kubectl.apply(
        [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": FAULTS_CONFIG_MAP, "namespace": NAMESPACE},
                "data": {"sitecustomize.py": faults},
            },
            lora_adapter(ADAPTER, NAMESPACE, training=TRAINING, handover=HandoverKind.SLEEP),
        ]
    )
    resources.wait_served(stack, NAMESPACE, ADAPTER, 0, timeout_seconds=300)
    yield Scene(stack, served, ADAPTER)
    serving.remove(stack, served)


@pytest.fixture(scope="module", params=HANDOVERS, ids=str)
def handover(request: pytest.FixtureRequest) -> HandoverKind:
    """Runs a test by each hand-over; of a module's scope, so that those by the same one come in a row."""
    return HandoverKind(request.param)


@pytest.fixture(autouse=True)
def healthy(scene: Scene, request: pytest.FixtureRequest) -> None:
    """Each test begins with the adapter Ready, its newest version in service, no step under way, nothing asleep. Its
    steps are taken by the test's `handover`, by Sleep where it has none."""
    wait_for("the lease to be free", lambda: not scene.lease_holder(), 120)
    adapter = scene.adapter()
    assert adapter.status.latest_version is not None
    wanted = request.getfixturevalue("handover") if "handover" in request.fixturenames else HandoverKind.SLEEP
    if adapter.spec.serving.handover is not wanted:
        scene.patch_adapter({"spec": {"serving": {"handover": wanted}}})
    resources.wait_served(
        scene.stack, scene.namespace, scene.adapter_name, adapter.status.latest_version, timeout_seconds=120
    )
    assert not scene.is_asleep(scene.url())
