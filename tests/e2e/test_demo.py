"""What `make demo` shows, by each hand-over, in fewer rounds."""

from __future__ import annotations

import time

import pytest

from claas_crds.v1alpha1.serving import HandoverKind
from tests.demo.course import learn, local
from tests.demo.report import serving_line, table
from tests.e2e.stage.scene import Scene
from tests.stack.gateway import gateway

pytestmark = pytest.mark.e2e

ROUNDS = 3
PAUSE_SECONDS = 0.3
"""Of a client between two questions. Trainers start twice as fast as beside clients that never pause."""


def test_the_adapter_of_the_demo_learns_while_no_request_fails(scene: Scene, handover: HandoverKind) -> None:
    name = f"demo-{handover.lower()}"
    began = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {message}")

    try:
        outcome = learn(
            scene.stack,
            gateway(scene.stack, scene.serving),
            local(scene.stack, scene.namespace, name, handover),
            ROUNDS,
            say,
            job_prefix=name,
            pause_seconds=PAUSE_SECONDS,
        )
    finally:
        scene.stack.kubectl("delete", "loraadapter", name, "-n", scene.namespace, "--ignore-not-found", "--wait=true")
    print(table(outcome.rounds))
    print(serving_line(outcome.rounds, str(outcome.way)))
    assert outcome.shortfalls() == []
