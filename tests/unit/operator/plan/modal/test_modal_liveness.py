"""Whatever Modal answers for a while, and whoever dies meanwhile: in the end the head is served, nothing is asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum

from hypothesis import given, settings
from hypothesis import strategies as st

from claas_crds.v1alpha1.conditions import AdapterCondition, AdapterReason, condition_of
from claas_crds.v1alpha1.version import AdapterVersion, VersionVerdict
from claas_operator.plan.actions import ConfirmPointer, LookAtModal, WritePointer
from claas_operator.plan.adapter.adapter import AdapterPlan, plan_adapter
from claas_operator.plan.modal.pointer import ServedPointer
from claas_operator.plan.modal.state import (
    LONGEST_ASKING_SECONDS,
    LOOK_AGAIN_SECONDS,
    ModalCall,
    ModalState,
    ModalTrouble,
    after_answer,
    after_look,
    after_setback,
    after_writing,
    begun,
)
from tests.builders.modal.world import URL, modal_adapter, modal_world, on_volume
from tests.builders.world import NOW, published

PASS_SECONDS = LONGEST_ASKING_SECONDS + 1


class Event(Enum):
    """What happens between two passes."""

    NOTHING = "nothing"
    STEP = "a version is published"
    BAD_STEP = "one that no container takes"
    RESTART = "the operator starts anew"
    RESTART_IN_MID_CALL = "the operator starts anew; its call was done"
    MEDDLING = "somebody removes the pointer"
    FAULT = "the next call fails"
    NEW_SPEC = "the spec is changed"


@dataclass
class World:
    """A cluster, an operator and Modal."""

    versions: list[AdapterVersion] = field(default_factory=lambda: [on_volume(0)])
    bad: set[int] = field(default_factory=set)
    status: list[AdapterVersion] = field(default_factory=lambda: [on_volume(0)])
    served: int | None = None
    state: ModalState = field(default_factory=lambda: ModalState(1))
    on_volume: ServedPointer | None = None
    answers: int | None = None
    """What the containers serve."""
    faults: int = 0
    generation: int = 1
    seconds: float = 0.0
    asked: int = 0
    """Requests that keep a container awake."""

    def a_pass(self) -> AdapterPlan:
        """A pass, and the call that it begins."""
        self.seconds += PASS_SECONDS
        found = modal_adapter(*self.status, served=self.served)
        metadata = found.metadata.model_copy(update={"generation": self.generation})
        found = found.model_copy(update={"metadata": metadata})
        now = NOW + timedelta(seconds=self.seconds)
        listed = {each.number for each in self.status}
        products = tuple(
            published(each.number, parent=each.parent).model_copy(update={"weights": each.weights})
            for each in self.versions
            if each.number not in listed
        )
        if self.state.generation != self.generation:
            self.state = ModalState(self.generation, url=self.state.url, answered=self.state.answered)
        plan = plan_adapter(replace(modal_world(found, self.state), now=now, products=products))
        self.status, self.served = list(plan.status.versions), plan.status.served_version
        for action in plan.actions:
            match action:
                case LookAtModal():
                    self._call(ModalCall.LOOK, None)
                case WritePointer(_, pointer):
                    self._call(ModalCall.POINT, pointer)
                case ConfirmPointer(_, pointer, _):
                    self.asked += 1
                    self._call(ModalCall.CONFIRM, pointer)
        return plan

    def _call(self, call: ModalCall, pointer: ServedPointer | None) -> None:
        now = NOW + timedelta(seconds=self.seconds)
        state = begun(self.state, call)
        if self.faults:
            self.faults -= 1
            self.state = after_setback(state, ModalTrouble.SERVICE_UNREACHABLE, "no answer", now)
            return
        if call is ModalCall.LOOK:
            self.state = after_look(state, self.on_volume, URL, now)
            return
        assert pointer is not None
        if call is ModalCall.POINT:
            self.on_volume = pointer
            self.state = after_writing(state, pointer, now)
            return
        if self.on_volume != pointer:
            self.state = after_look(state, self.on_volume, URL, now)
        elif pointer.version in self.bad:
            self.state = after_setback(state, ModalTrouble.REFUSED, "refused", now, refused=pointer)
        elif self.answers != pointer.version:
            # It is taken up a moment later.
            self.answers = pointer.version
            self.state = after_setback(state, ModalTrouble.NOT_YET, "starts", now)
        else:
            self.state = after_answer(state, pointer, URL, 1)

    def happens(self, event: Event) -> None:
        head = [each for each in self.versions if each.number not in self.bad][-1]
        number = self.versions[-1].number + 1
        match event:
            case Event.STEP | Event.BAD_STEP:
                if not self.bad & {each.number for each in self.versions if not _rejected(each.number, self.status)}:
                    self.versions.append(on_volume(number, parent=head.number))
                    if event is Event.BAD_STEP:
                        self.bad.add(number)
            case Event.RESTART:
                self.state = ModalState(self.generation)
            case Event.RESTART_IN_MID_CALL:
                self.a_pass()
                self.state = ModalState(self.generation)
            case Event.MEDDLING:
                self.on_volume = None
                # The next look at what has answered is some time away.
                self.seconds += LOOK_AGAIN_SECONDS
            case Event.FAULT:
                self.faults += 1
            case Event.NEW_SPEC:
                self.generation += 1
            case Event.NOTHING:
                pass


def _rejected(number: int, status: list[AdapterVersion]) -> bool:
    return any(each.number == number and each.verdict is VersionVerdict.REJECTED for each in status)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Event), st.integers(0, 3)), max_size=14))
def test_in_the_end_the_head_is_served_every_refused_version_is_rejected_and_nothing_is_asked(
    events: list[tuple[Event, int]],
) -> None:
    world = World()
    for event, passes in events:
        world.happens(event)
        for _ in range(passes):
            world.a_pass()
    for _ in range(20 + world.faults):
        plan = world.a_pass()
    good = [each.number for each in world.versions if each.number not in world.bad]
    ready = condition_of(plan.status.conditions, AdapterCondition.READY)
    assert ready is not None
    assert ready.reason == AdapterReason.SERVING, ready.message
    assert plan.status.served_version == plan.status.latest_version == good[-1] == world.answers
    assert world.on_volume is not None
    assert world.on_volume.version == good[-1]
    assert {each.number for each in plan.status.versions if each.verdict is VersionVerdict.REJECTED} == world.bad
    before = world.asked
    for _ in range(10):
        world.a_pass()
    assert world.asked == before
    # Neither does an operator that starts anew.
    world.state = ModalState(world.generation)
    for _ in range(5):
        world.a_pass()
    assert world.asked == before
