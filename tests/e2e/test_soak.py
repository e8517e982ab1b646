"""Many clients, one vLLM replica, and a step every twenty seconds, for minutes."""

from __future__ import annotations

import threading
import time

import pytest

from claas_crds.v1alpha1.serving import HandoverKind
from tests.e2e.stage.handovers import pauses
from tests.e2e.stage.scene import Scene
from tests.stack import rollouts
from tests.stack.crowd import Crowd, SleepWatch, Span
from tests.stack.gateway import Gateway, gateway, wait_until_it_answers
from tests.tiny_model.tasks import Preference, feedback, questions

pytestmark = pytest.mark.long

CLIENTS = 32
SECONDS = 300.0
STEP_EVERY_SECONDS = 20.0
ITEMS = 4
MAX_TOKENS = 32
TOLERANCE_SECONDS = 1.0
"""Of telling a pause by looking again and again on a busy machine."""


def learn_again_and_again(front: Gateway, adapter: str, until: float) -> list[int]:
    """Give feedback every twenty seconds, or as soon as the step before is done; the versions that came of it."""
    versions: list[int] = []
    for number in range(1_000):
        began = time.monotonic()
        if began > until:
            return versions
        answers = rollouts.chat(front, adapter, questions(ITEMS, seed=3000 + number), seed=3000 + number)
        said = feedback(Preference.NO_EMOJI, ITEMS, seed=number)
        given = front.give_feedback(
            [answer.as_feedback(adapter, text) for answer, text in zip(answers, said, strict=True)]
        )
        assert {item.state for item in given.items} == {"in-version"}, given
        versions += sorted({item.version for item in given.items if item.version is not None})
        time.sleep(max(0.0, began + STEP_EVERY_SECONDS - time.monotonic()))
    return versions


def test_no_request_of_many_clients_fails_and_none_takes_longer_than_the_pause_and_its_own_time(
    scene: Scene, handover: HandoverKind
) -> None:
    front = gateway(scene.stack, scene.serving)
    wait_until_it_answers(front)
    crowd = Crowd(front, scene.adapter_name, CLIENTS, MAX_TOKENS)
    began = time.monotonic()
    asking = threading.Thread(target=crowd.run, args=(SECONDS,), daemon=True)
    with SleepWatch(scene.url(), scene.serving.token) as watch:
        asking.start()
        versions = learn_again_and_again(front, scene.adapter_name, began + SECONDS)
        asking.join(300)
    assert not asking.is_alive()
    undisturbed = [each for each in crowd.answered if not any(each.touches(pause) for pause in watch.pauses)]
    pause, own = _longest(watch.pauses), _longest(undisturbed)
    slowest = _longest(crowd.answered)
    print(f"\n{handover}: {CLIENTS} clients for {SECONDS:.0f} s, {len(versions)} steps")
    print(f"{len(crowd.answered)} requests, {len(crowd.failures)} failed; slowest {slowest:.2f} s")
    print(f"longest pause {pause:.2f} s + slowest request outside pauses {own:.2f} s = bound {pause + own:.2f} s")
    assert crowd.failures == []
    assert len(versions) > SECONDS / STEP_EVERY_SECONDS / 4
    assert (watch.pauses != []) == pauses(handover)
    assert slowest <= pause + own + TOLERANCE_SECONDS


def _longest(spans: list[Span]) -> float:
    return max((each.seconds for each in spans), default=0.0)
