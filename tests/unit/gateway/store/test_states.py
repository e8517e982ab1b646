"""Whatever happens in whatever order: an item ends once, a batch keeps its members, nothing is lost.

Each step is done to a real SQLite and to a model of it in plain dictionaries; afterwards both say the same.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from claas_gateway.records import BatchState, ItemOutcome, ItemState
from claas_gateway.store.interface import Store
from claas_gateway.store.sql_store import open_store
from tests.builders.gateway_records import after, build_batch, build_item, build_request

FINAL = (ItemState.IN_VERSION, ItemState.REFUSED)
OPEN = (ItemState.BATCHED, ItemState.IN_JOB)


class Life(RuleBasedStateMachine):
    """Requests, batches and their ends."""

    items = Bundle("items")
    batches = Bundle("batches")
    template: Path

    @initialize()
    def begin(self) -> None:
        """Open an empty store."""
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.opened = open_store(f"sqlite+aiosqlite:///{shutil.copy(self.template, self.folder.name)}")
        self.store: Store = self.loop.run_until_complete(self.opened.__aenter__())
        self.names = 0
        self.state: dict[str, ItemState] = {}
        self.members: dict[str, list[str]] = {}
        self.accounted: set[str] = set()
        self.final: dict[str, ItemState] = {}

    def teardown(self) -> None:
        """Close it."""
        if hasattr(self, "opened"):
            self.loop.run_until_complete(self.opened.__aexit__(None, None, None))
            self.loop.close()
            self.folder.cleanup()

    def name(self) -> str:
        """A new name."""
        self.names += 1
        return f"n{self.names}"

    @rule(target=items, count=st.integers(1, 3))
    def accept(self, count: int) -> object:
        """A request brings items."""
        request, names = self.name(), [self.name() for _ in range(count)]
        brought = [build_item(name, request=request, position=place) for place, name in enumerate(names)]
        self.loop.run_until_complete(self.store.feedback.accept(build_request(request), brought))
        self.state.update(dict.fromkeys(names, ItemState.STORED))
        return multiple(*names)

    @rule(target=items)
    def accept_in_a_batch(self) -> object:
        """A synchronous request brings its batch."""
        request, item, batch = self.name(), self.name(), self.name()
        brought = [build_item(item, request=request, state=ItemState.BATCHED, batch=batch)]
        accept = self.store.feedback.accept(build_request(request), brought, [build_batch(batch)])
        self.loop.run_until_complete(accept)
        self.state[item], self.members[batch] = ItemState.BATCHED, [item]
        return item

    @rule(target=batches, wanted=st.lists(items, min_size=1, max_size=4, unique=True))
    def form(self, wanted: list[str]) -> str:
        """Items form a batch, if all of them wait."""
        batch = self.name()
        formed = self.loop.run_until_complete(self.store.batches.form(build_batch(batch), wanted))
        assert formed == all(self.state[name] is ItemState.STORED for name in wanted)
        if formed:
            self.members[batch] = list(wanted)
            self.state.update(dict.fromkeys(wanted, ItemState.BATCHED))
        return batch

    @rule(batch=batches)
    def submit(self, batch: str) -> None:
        """Its job is made."""
        self.loop.run_until_complete(self.store.batches.submitted(batch, "uid", after(1)))
        if batch in self.members and batch not in self.accounted:
            for name in self.members[batch]:
                if self.state[name] is ItemState.BATCHED:
                    self.state[name] = ItemState.IN_JOB

    @rule(target=batches, batch=batches, refused=st.integers(0, 4), with_rest=st.booleans())
    def account(self, batch: str, refused: int, with_rest: bool) -> str:
        """Its job ends: some items are refused, the others are in a version or train again."""
        rest = self.name()
        live = [name for name in self.members.get(batch, []) if self.state[name] in OPEN]
        outcomes = [ItemOutcome(name, ItemState.REFUSED, reason="Bad") for name in live[:refused]]
        if not with_rest:
            outcomes += [ItemOutcome(name, ItemState.IN_VERSION, version=7) for name in live[refused:]]
        ended = replace(build_batch(batch), state=BatchState.ACCOUNTED, accounted=after(2))
        account = self.store.batches.account(ended, outcomes, build_batch(rest) if with_rest else None)
        first = self.loop.run_until_complete(account)
        assert first == (batch in self.members and batch not in self.accounted)
        if first:
            self.accounted.add(batch)
            for outcome in outcomes:
                self.state[outcome.item_id] = outcome.state
            if with_rest and live[refused:]:
                self.members[rest] = live[refused:]
                self.members[batch] = [name for name in self.members[batch] if name not in live[refused:]]
                self.state.update(dict.fromkeys(live[refused:], ItemState.BATCHED))
        return rest

    @rule(name=items)
    def refuse(self, name: str) -> None:
        """An item is refused, whatever it is in."""
        refuse = self.store.feedback.refuse([ItemOutcome(name, ItemState.REFUSED, reason="Bad")])
        self.loop.run_until_complete(refuse)
        if self.state[name] not in FINAL:
            self.state[name] = ItemState.REFUSED

    @rule()
    def expire(self) -> None:
        """All is old."""
        self.loop.run_until_complete(self.store.expire(after(1_000)))

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        """States, counts and members are equal, and no item leaves its end."""
        if not hasattr(self, "opened"):
            return
        run = self.loop.run_until_complete
        page = run(self.store.feedback.page(None, None, 1, 1_000))
        assert {item.id: item.state for item in page.items} == self.state
        assert page.total == len(self.state)
        assert sum((Counter(each) for each in run(self.store.feedback.counts()).values()), Counter()) == Counter(
            self.state.values()
        )
        for batch, members in self.members.items():
            assert [item.id for item in run(self.store.feedback.items_of_batch(batch))] == members
        assert {each.id for each in run(self.store.batches.unaccounted())} == set(self.members) - self.accounted
        for name, state in self.final.items():
            assert self.state[name] is state
        self.final = {name: state for name, state in self.state.items() if state in FINAL}
        assert all(self.state[name] in FINAL for batch in self.accounted for name in self.members[batch])


@pytest.mark.parametrize("examples", [5, pytest.param(200, marks=pytest.mark.contract)])
def test_items_end_once_and_batches_keep_their_members(sqlite_file: Path, examples: int) -> None:
    Life.template = sqlite_file
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
