"""The schedule of passes: every woken key has its turn, never twice at once, and no lane waits for another."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from claas_operator.keys import Key, Kind
from claas_operator.loop.schedule import KeySchedule

SLOTS = {Kind.LEASE: 2, Kind.ADAPTER: 1, Kind.JOB: 1}
keys = st.builds(Key, st.sampled_from(Kind), st.just("team"), st.sampled_from("abcd"))
delays = st.sampled_from([0.0, 0.5, 3.0])


def key(kind: Kind, name: str) -> Key:
    return Key(kind, "team", name)


class Passes(RuleBasedStateMachine):
    """Wakes, passes that begin and end, and time that goes on, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = KeySchedule(SLOTS)
        self.now = 0.0
        self.wanted: dict[Key, float] = {}
        self.running: list[Key] = []

    @rule(woken=keys, delay=delays)
    def wake(self, woken: Key, delay: float) -> None:
        sooner = self.schedule.wake(woken, self.now + delay)
        assert sooner == (self.now + delay < self.wanted.get(woken, float("inf")))
        self.wanted[woken] = min(self.wanted.get(woken, float("inf")), self.now + delay)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), delay=delays)
    def fail(self, data: st.DataObject, delay: float) -> None:
        failed = data.draw(st.sampled_from(self.running))
        self.schedule.put_off(failed, self.now + delay)
        self.wanted[failed] = self.now + delay
        self.end(failed)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.running)))

    def end(self, ended: Key) -> None:
        self.running.remove(ended)
        self.schedule.finish(ended)

    @rule()
    def start(self) -> None:
        for started, due in self.schedule.start(self.now):
            assert started not in self.running
            assert self.wanted.pop(started) == due <= self.now
            self.running.append(started)
        for kind, slots in SLOTS.items():
            held = sum(each.kind is kind for each in self.running)
            left = self.due(kind)
            assert held <= slots
            assert not left or held == slots, "a key that is due waits although its lane has a slot"

    @rule(seconds=delays)
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def due(self, kind: Kind) -> list[Key]:
        return [
            each
            for each, due in self.wanted.items()
            if each.kind is kind and due <= self.now and each not in self.running
        ]

    @invariant()
    def next_start_is_known(self) -> None:
        startable = [
            due
            for each, due in self.wanted.items()
            if each not in self.running and sum(other.kind is each.kind for other in self.running) < SLOTS[each.kind]
        ]
        assert self.schedule.next_start() == min(startable, default=None)
        for kind in Kind:
            assert self.schedule.waiting(kind, self.now) == len(self.due(kind))


TestPasses = Passes.TestCase
TestPasses.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(names=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30))
def test_within_a_lane_keys_come_in_the_order_in_which_they_were_due(names: list[str]) -> None:
    schedule = KeySchedule({**SLOTS, Kind.JOB: 1})
    first: dict[str, int] = {}
    for moment, name in enumerate(names):
        schedule.wake(key(Kind.JOB, name), float(moment))
        first.setdefault(name, moment)
    order = []
    while started := schedule.start(1000.0):
        order += [each.name for each, _ in started]
        schedule.finish(started[0][0])
    assert order == sorted(first, key=lambda name: first[name])


def test_a_lease_and_an_adapter_start_at_once_while_ten_thousand_jobs_wait() -> None:
    schedule = KeySchedule()
    for number in range(10_000):
        schedule.wake(key(Kind.JOB, str(number)), 0.0)
    jobs = schedule.start(1.0)
    schedule.wake(key(Kind.ADAPTER, "tone"), 1.0)
    schedule.wake(key(Kind.LEASE, "claas-serving-vllm"), 1.0)
    assert {each.kind for each, _ in jobs} == {Kind.JOB}
    assert [each.kind for each, _ in schedule.start(1.0)] == [Kind.LEASE, Kind.ADAPTER]


def test_ten_thousand_keys_cost_little_to_wake_again_and_again() -> None:
    schedule = KeySchedule(dict.fromkeys(Kind, 10_000))
    began = time.process_time()
    for round_ in range(5):
        for number in range(10_000):
            schedule.wake(key(Kind.JOB, str(number)), 1000.0 - round_)
    # A sort of all keys at each of 50,000 steps would take minutes.
    assert time.process_time() - began < 5
    assert len(schedule.start(1000.0)) == 10_000


def test_what_is_held_waits_and_is_not_lost_while_leases_go_on() -> None:
    schedule = KeySchedule()
    schedule.hold(Kind.ADAPTER, Kind.JOB)
    for kind in Kind:
        schedule.wake(key(kind, "a"), 0.0)
    assert [each.kind for each, _ in schedule.start(1.0)] == [Kind.LEASE]
    assert schedule.next_start() is None
    schedule.hold()
    assert [each.kind for each, _ in schedule.start(1.0)] == [Kind.ADAPTER, Kind.JOB]
