"""The initial version of a LoraAdapter: a trainer makes it, or finds the head on the volume."""

from __future__ import annotations

from datetime import timedelta

from claas_crds.v1alpha1.version import AdapterVersion
from claas_operator.plan import naming
from claas_operator.plan.actions import Action, CreateInit
from claas_operator.plan.adapter.engine import refusals_of
from claas_operator.plan.adapter.server_fitness import unfit
from claas_operator.plan.job_draft import STOP_GRACE_SECONDS, end, retire
from claas_operator.plan.world import AdapterWorld, TrainerStart, TrainerState

INIT_RETRY_SECONDS = 30


def initial_version_actions(world: AdapterWorld, head: AdapterVersion | None) -> list[Action]:
    """Plan for the trainer that makes or finds the initial version."""
    init = world.init
    if head is not None:
        return _let_init_go(world)
    if not world.claim_found or not world.secrets.usable or refusals_of(world):
        return []
    if init.state is TrainerState.ABSENT and unfit(world) is not None:
        return []  # No pod could load the version, so report the problem now, before it is made.
    if init.state is TrainerState.ABSENT and not init.alive:
        return [CreateInit(naming.init_name(world.adapter.metadata))]
    if init.hindered and init.start is not None and _is_outdated(init.start, world.adapter.metadata.generation):
        return [end(init, 1, "the spec has changed since")]
    if init.state in (TrainerState.FAILED, TrainerState.LOST, TrainerState.SUCCEEDED):
        ended = init.finished_at
        if ended is None or world.now - ended > timedelta(seconds=INIT_RETRY_SECONDS):
            return [end(init, 1, "the initial version is tried again")]
    return []


def _is_outdated(start: TrainerStart, generation: int) -> bool:
    """Whether the trainer was created from an earlier spec; the change may remove the cause that keeps it from
    starting."""
    return start.generation is not None and start.generation != generation


def _let_init_go(world: AdapterWorld) -> list[Action]:
    """The initial version is in status, so its trainer is no longer needed."""
    init = world.init
    if world.adapter.status.latest_version is None or init.state in (TrainerState.ABSENT, TrainerState.RUNNING):
        return []
    if init.held_open:
        why = "its trainer has ended, and another container keeps its pod"
        return [end(init, STOP_GRACE_SECONDS, why)]
    return [] if init.retired else [retire(init, world.now)]
