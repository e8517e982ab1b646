"""What a container serves after pointers changed, things failed, and containers came and went."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from claas_modal_client.pointers import ReceiptOutcome
from claas_modal_vllm.follower import LOOK_SECONDS, Follower
from claas_modal_vllm.plan import REPEAT_SECONDS
from tests.unit.modal_vllm.pointed import FilesOf, World, pointer

LONG = 1000.0
NAMES = st.sampled_from(["tone", "style", "team/mood"])
VERSIONS = st.integers(0, 4)
FAULTS = st.sampled_from(["volume_fails", "volume_is_odd", "receipts_fail", "disk_fails", "vllm_fails"])


async def looks(world: World, follower: Follower, count: int, seconds: float = LOOK_SECONDS) -> bool:
    settled = False
    for _ in range(count):
        settled = await follower.look()
        world.now += seconds
    return settled


async def test_a_pointer_is_followed_and_a_receipt_written() -> None:
    world = World(pointers={"tone": pointer("tone", 1)})
    follower = world.follower()
    assert await follower.look()
    assert (world.version("tone"), world.outcome("tone")) == (1, (1, ReceiptOutcome.SERVED))
    world.pointers["tone"] = pointer("tone", 2)
    assert await follower.look()
    assert (world.version("tone"), world.outcome("tone")) == (2, (2, ReceiptOutcome.SERVED))
    await looks(world, follower, 3)
    assert world.written == 2
    receipt = world.receipts["tone"]
    assert (receipt.container, receipt.max_containers, receipt.weights) == ("ta-1", 2, pointer("tone", 2).weights)


async def test_a_pointer_that_goes_back_is_followed_back_and_said_again() -> None:
    world = World(pointers={"tone": pointer("tone", 2)})
    follower = world.follower()
    await follower.look()
    world.pointers["tone"] = pointer("tone", 1)
    await follower.look()
    world.pointers["tone"] = pointer("tone", 2)
    await follower.look()
    assert (world.version("tone"), world.outcome("tone")) == (2, (2, ReceiptOutcome.SERVED))


async def test_a_version_that_vllm_refuses_is_said_once_and_the_one_before_serves_on() -> None:
    world = World(pointers={"tone": pointer("tone", 1)}, unusable={("tone", 2)})
    follower = world.follower()
    await follower.look()
    world.pointers["tone"] = pointer("tone", 2)
    assert await looks(world, follower, 5, LONG)
    assert (world.version("tone"), world.outcome("tone")) == (1, (2, ReceiptOutcome.REFUSED))
    assert world.receipts["tone"].message == "vLLM refused"
    assert world.loads.count(("tone", 2)) == 1


async def test_files_that_are_not_as_promised_are_asked_for_again_before_they_are_refused() -> None:
    world = World(pointers={"tone": pointer("tone", 1)})
    follower = world.follower()
    await follower.look()
    world.pointers["tone"] = pointer("tone", 2)
    world.damaged = {("tone", 2)}
    assert not await follower.look()
    assert world.outcome("tone") == (1, ReceiptOutcome.SERVED)
    assert await looks(world, follower, 5)
    assert (world.version("tone"), world.outcome("tone")) == (1, (2, ReceiptOutcome.REFUSED))
    assert world.loads == [("tone", 1)]


async def test_files_that_appear_late_are_served() -> None:
    world = World(pointers={"tone": pointer("tone", 1)}, damaged={("tone", 1)})
    follower = world.follower()
    assert not await follower.look()
    world.damaged = set()
    world.now += LOOK_SECONDS
    assert await follower.look()
    assert world.outcome("tone") == (1, ReceiptOutcome.SERVED)


async def test_a_refused_version_is_tried_again_once_its_pointer_has_been_elsewhere() -> None:
    world = World(pointers={"tone": pointer("tone", 2)}, unusable={("tone", 2)})
    follower = world.follower()
    await follower.look()
    world.pointers["tone"] = pointer("tone", 1)
    await follower.look()
    world.unusable = set()
    world.pointers["tone"] = pointer("tone", 2)
    await follower.look()
    assert world.version("tone") == 2


async def test_a_fault_that_passes_is_retried_less_and_less_often() -> None:
    world = World(pointers={"tone": pointer("tone", 1)}, disk_fails=True)
    follower = world.follower()
    await looks(world, follower, 200)
    gaps = [after - before for before, after in zip(world.fetches, world.fetches[1:], strict=False)]
    assert gaps == sorted(gaps)
    assert gaps[0] == LOOK_SECONDS
    assert max(gaps) >= 150
    world.disk_fails = False
    world.now += LONG
    assert await follower.look()


async def test_one_bad_version_does_not_keep_others_from_being_served() -> None:
    world = World(
        pointers={"a": pointer("a", 1), "b": pointer("b", 1), "c": pointer("c", 1), "d": None},
        damaged={("a", 1)},
        unusable={("b", 1)},
    )
    await world.follower().look()
    assert set(world.served) == {"c"}


@pytest.mark.parametrize("fault", ["volume_fails", "vllm_fails"])
async def test_while_the_volume_or_vllm_fails_nothing_is_taken_out_of_service(fault: str) -> None:
    world = World(pointers={"tone": pointer("tone", 1)})
    follower = world.follower()
    await follower.look()
    world.pointers = {}
    setattr(world, fault, True)
    assert not await looks(world, follower, 3)
    assert (world.version("tone"), world.removals) == (1, [])
    setattr(world, fault, False)
    assert await follower.look()
    assert world.removals == ["tone"]


async def test_a_pointer_that_cannot_be_read_leaves_its_name_as_it_is() -> None:
    world = World(pointers={"tone": pointer("tone", 1)})
    follower = world.follower()
    await follower.look()
    world.pointers["tone"] = None
    await looks(world, follower, 3)
    assert world.version("tone") == 1


async def test_a_container_waits_for_a_pointer_that_cannot_be_read_yet() -> None:
    world = World(pointers={"tone": None, "mood": pointer("mood", 1)})
    follower = world.follower()
    assert not await follower.look()
    assert world.version("mood") == 1
    world.pointers["tone"] = pointer("tone", 1)
    assert await follower.look()


async def test_a_name_that_comes_back_gets_a_receipt_again() -> None:
    world = World(pointers={"tone": pointer("tone", 1)})
    follower = world.follower()
    await follower.look()
    world.pointers, world.receipts = {}, {}
    await follower.look()
    world.pointers["tone"] = pointer("tone", 1)
    await follower.look()
    assert world.outcome("tone") == (1, ReceiptOutcome.SERVED)


async def test_a_receipt_that_could_not_be_written_is_written_later() -> None:
    world = World(pointers={"tone": pointer("tone", 1)}, receipts_fail=True)
    follower = world.follower()
    assert await follower.look()
    assert world.receipts == {}
    world.receipts_fail = False
    await follower.look()
    assert world.outcome("tone") == (1, ReceiptOutcome.SERVED)


async def test_a_receipt_that_somebody_removed_is_written_again_in_time() -> None:
    world = World(pointers={"tone": pointer("tone", 1)})
    follower = world.follower()
    await follower.look()
    world.receipts = {}
    await looks(world, follower, 2, REPEAT_SECONDS)
    assert world.outcome("tone") == (1, ReceiptOutcome.SERVED)


async def test_local_files_stay_as_long_as_vllm_has_them_loaded() -> None:
    world = World(pointers={"tone": pointer("tone", 1)})
    follower = world.follower()
    await follower.look()
    old = world.served["tone"].path
    world.held = {old}
    world.pointers["tone"] = pointer("tone", 2)
    await follower.look()
    assert old in world.local
    world.held = set()
    await follower.look()
    assert world.local == {world.served["tone"].path}


async def test_a_bug_at_one_version_does_not_keep_others_from_being_followed() -> None:
    world = World(pointers={"a": pointer("a", 1), "b": pointer("b", 1)}, odd={("a", 1)})
    follower = world.follower()
    assert not await follower.look()
    assert set(world.served) == {"b"}
    assert "RuntimeError" in follower.why()
    assert "private" not in follower.why()
    world.odd = set()
    world.now += LOOK_SECONDS
    assert await follower.look()


async def test_a_bug_in_reading_the_volume_ends_neither_the_follower_nor_what_is_served() -> None:
    world = World(pointers={"tone": pointer("tone", 1)})
    follower = world.follower()
    await follower.look()
    world.volume_is_odd = True
    assert not await follower.look()
    assert (world.version("tone"), follower.why()) == (1, "an unexpected RuntimeError")
    world.volume_is_odd = False
    assert await follower.look()


async def test_files_that_take_long_hold_up_no_other_name_and_are_fetched_once() -> None:
    world = World(pointers={"a": pointer("a", 1), "b": pointer("b", 1)}, slow={("a", 1)})
    follower = world.follower()
    assert not await looks(world, follower, 3)
    world.pointers["b"] = pointer("b", 2)
    assert not await follower.look()
    assert (world.version("a"), world.version("b")) == (None, 2)
    world.arrival.set()
    assert await looks(world, follower, 2)
    assert world.version("a") == 1
    assert len(world.fetches) == 3


async def test_files_of_a_pointer_that_has_moved_on_are_not_waited_for() -> None:
    world = World(pointers={"a": pointer("a", 1)}, slow={("a", 1)})
    follower = world.follower()
    assert not await follower.look()
    world.pointers["a"] = pointer("a", 2)
    assert await follower.look()
    world.arrival.set()
    await asyncio.sleep(0)
    assert (world.version("a"), world.loads, world.local) == (2, [("a", 2)], {"/disk/uid-of-a/2"})


async def test_an_adapter_of_the_same_name_that_is_another_one_is_served_by_its_own_files() -> None:
    world = World(pointers={"tone": pointer("tone", 1)})
    follower = world.follower()
    await follower.look()
    world.pointers["tone"] = pointer("tone", 1, "other")
    assert await follower.look()
    assert world.served["tone"].path == "/disk/other-of-tone/1"
    assert world.receipts["tone"].adapter_uid == "other-of-tone"


class Containers(RuleBasedStateMachine):
    """Whatever the order of pointer changes, faults and restarts."""

    @initialize()
    def begin(self) -> None:
        self.world = World(
            damaged={("tone", 3), ("style", 1)}, unusable={("tone", 4), ("style", 2), ("team/mood", 0)}
        )
        self.follower = self.world.follower()
        self.runner = asyncio.Runner()

    @rule(name=NAMES, version=VERSIONS)
    def point(self, name: str, version: int) -> None:
        self.world.pointers[name] = pointer(name, version)

    @rule(name=NAMES)
    def spoil(self, name: str) -> None:
        if name in self.world.pointers:
            self.world.pointers[name] = None

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        self.world.pointers.pop(name, None)
        self.world.receipts.pop(name, None)

    @rule(fault=FAULTS, fails=st.booleans())
    def fail(self, fault: str, fails: bool) -> None:
        setattr(self.world, fault, fails)

    @rule()
    def restart(self) -> None:
        self.follower = self.world.restart()

    @rule(seconds=st.floats(0, 400))
    def look(self, seconds: float) -> None:
        world, before = self.world, dict(self.world.served)
        self.runner.run(self.follower.look())
        world.now += seconds
        for name, was in before.items():
            if name not in world.served:
                assert name not in world.pointers
            elif world.served[name] != was:
                now = world.pointers[name]
                assert now is not None
                assert now.version == world.served[name].version

    @invariant()
    def bad_versions_never_serve(self) -> None:
        assert all(self.world.good(name, each.version) for name, each in self.world.served.items())

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.volume_fails = world.volume_is_odd = world.receipts_fail = False
        world.disk_fails = world.vllm_fails = False
        served_before = dict(world.served)
        for _ in range(6):
            world.now += LONG
            self.runner.run(self.follower.look())
        for name, wanted in world.pointers.items():
            if wanted is None or not world.good(name, wanted.version):
                assert world.served.get(name) == served_before.get(name)
            else:
                assert world.version(name) == wanted.version
            if wanted is not None:
                good = world.good(name, wanted.version)
                outcome = ReceiptOutcome.SERVED if good else ReceiptOutcome.REFUSED
                assert world.outcome(name) == (wanted.version, outcome)
        assert set(world.served) <= set(world.pointers)
        needed = {FilesOf(world).path(each) for each in world.pointers.values() if each is not None}
        assert world.local <= needed | {each.path for each in world.served.values()}
        self.runner.close()


def test_in_the_end_each_name_serves_its_pointers_version_or_the_last_good_one() -> None:
    run_state_machine_as_test(Containers, settings=settings(max_examples=150, stateful_step_count=25, deadline=None))
