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
    moved = (
        f"spec.engine is {world.engine}, and the adapter's versions were made by {before}: no other engine can go on"
        f" from them. Set it back, or make another adapter with a folder of its own (spec.storage.path)"
    )
    return (moved, *world.refusals)
