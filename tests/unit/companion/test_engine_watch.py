"""The server ends with its engine, also where vLLM waits for a call that nobody will answer."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from claas_vllm import engine_watch
from claas_vllm.engine_watch import EXIT_CODE, GRACE_SECONDS, end_with_engine, watch_engine


@dataclass
class Engine:
    """An engine whose state follows a clock: dead in these spans of seconds. The clock stops at `stops_at`."""

    dead: tuple[tuple[float, float], ...]
    stops_at: float = 60.0
    now: float = 0.0
    ended: list[tuple[float, int]] = field(default_factory=list)

    @property
    def errored(self) -> bool:
        return any(start <= self.now < end for start, end in self.dead)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > self.stops_at:
            raise TimeoutError

    def watched(self) -> list[tuple[float, int]]:
        with suppress(TimeoutError):
            end_with_engine(
                self, end=lambda code: self.ended.append((self.now, code)), clock=lambda: self.now, sleep=self.sleep
            )
        return self.ended


@pytest.mark.parametrize(
    ("dead", "ends_at"),
    [
        ((), None),
        (((5, 1000),), 5 + GRACE_SECONDS),
        (((0, 1000),), GRACE_SECONDS),
        (((5, 5 + GRACE_SECONDS - 1),), None),
        (((5, 12), (20, 1000)), 20 + GRACE_SECONDS),
    ],
    ids=["alive", "dies", "dead from the start", "recovers", "recovers and dies"],
)
def test_a_server_ends_when_its_engine_has_been_dead_for_the_grace(
    dead: tuple[tuple[float, float], ...], ends_at: float | None
) -> None:
    assert Engine(dead).watched() == ([] if ends_at is None else [(ends_at, EXIT_CODE)])


@pytest.mark.parametrize(
    ("application", "environment", "watched"),
    [
        (SimpleNamespace(state=SimpleNamespace(engine_client="e")), {}, True),
        (SimpleNamespace(state=SimpleNamespace(engine_client="e")), {"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "0"}, True),
        (SimpleNamespace(state=SimpleNamespace(engine_client="e")), {"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}, False),
        (SimpleNamespace(state=SimpleNamespace(engine_client=None)), {}, False),
        (None, {}, False),
    ],
    ids=["watched", "said so", "to outlive it", "no engine", "no application"],
)
def test_only_a_server_that_is_not_to_outlive_its_engine_is_watched(
    application: object, environment: dict[str, str], watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    monkeypatch.setattr(engine_watch, "end_with_engine", begun.append)
    watch_engine(application, environment)
    assert begun == (["e"] if watched else [])
