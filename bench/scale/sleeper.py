"""A vLLM that sleeps for a step whose trainer is going to die: how long until the operator wakes it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.simulation.scene import Scene, VllmPod, holds
from tests.simulation.trainer import Ending, Moment, Script

_LONGEST_PAUSE_SECONDS = 3600
"""So that nobody wakes it before its trainer has died."""


@dataclass
class Sleeper:
    """One Deployment with one pod, one adapter and one job."""

    pod: VllmPod
    script: Script
    died: float | None = None
    """When its trainer died, by the monotonic clock."""

    @classmethod
    def put_to_sleep(cls, scene: Scene, name: str, timeout_seconds: float) -> Sleeper:
        """Have a step begin that pauses serving and then stands still."""
        (pod,) = scene.serve(name)
        scene.apply_adapter(name, name, maxPauseSeconds=_LONGEST_PAUSE_SECONDS)
        scene.wait_for_adapter(name, lambda adapter: holds(adapter.status.conditions, "Ready"), timeout_seconds)
        script = scene.script(Script(ending=Ending.DIE, moment=Moment.ASLEEP, hold=True), job=name)
        scene.apply_job(name, name)
        scene.wait_until_reached(script, timeout_seconds)
        assert pod.server.app.asleep
        return cls(pod, script)

    def die(self) -> None:
        """Let the trainer die, as if it had been killed."""
        self.died = time.monotonic()
        self.script.hold = False

    @property
    def woken_after_seconds(self) -> float | None:
        """From its trainer's death until vLLM was woken; None while it sleeps."""
        wakes = self.pod.server.app.wakes
        return wakes[0] - self.died if self.died is not None and wakes else None
