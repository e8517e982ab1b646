"""Whether the adapter's engine can train it: by its settings, and by the versions that it has."""

from __future__ import annotations

from claas_crds.v1alpha1.engine import EngineName
from claas_operator.plan.world import AdapterWorld


def engine_so_far(world: AdapterWorld) -> EngineName | None:
    """The engine that made the adapter's versions, by its status; None before the first version."""
    status = world.adapter.status
    # Before it was recorded there was one engine.
    return status.engine or (EngineName.LOCAL if status.versions else None)


def refusals_of(world: AdapterWorld) -> tuple[str, ...]:
    """Why the engine can't train the adapter, a sentence for each reason."""
    before = engine_so_far(world)
    if before in (None, world.engine):
        return world.refusals
    default = "" if world.adapter.spec.engine is not None else " by the operator's execution mode"
    moved = (
        f"spec.engine is {world.engine}{default}, and the adapter's versions were made by {before}: no other engine"
        f" can go on from them. Set it to `{before}: {{}}`, or make another adapter with a folder of its own"
        f" (spec.storage.path)"
    )
    return (moved, *world.refusals)
