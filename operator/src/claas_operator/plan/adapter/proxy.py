"""The inference proxy of an adapter with `serving.tinkerProxy`: its token at once, its Deployment once there is a
version to serve. It takes the newest one on the volume by itself, so that it becomes ready without being told."""

from __future__ import annotations

from claas_operator.plan.actions import Action, ApplyProxy, CreateProxyToken
from claas_operator.plan.adapter.engine import refusals_of
from claas_operator.plan.world import AdapterWorld


def proxy_actions(world: AdapterWorld, *, has_version: bool) -> list[Action]:
    """What to make or mend of it."""
    proxy = world.proxy
    if proxy is None or refusals_of(world):
        return []
    actions: list[Action] = []
    if proxy.token_missing:
        actions.append(CreateProxyToken())
    if has_version and proxy.taken_by is None and not proxy.current:
        actions.append(ApplyProxy())
    return actions
