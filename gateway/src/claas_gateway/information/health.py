"""Whether the gateway can work: what health, liveness and readiness tell.

These answers need no key, so they count and never name: no namespace, adapter, Deployment, host.
"""

from __future__ import annotations

import asyncio

from claas_gateway.services import Services

_DATABASE_SECONDS = 3.0


async def hindrances(services: Services) -> list[str]:
    """Why this replica can't work: nothing is sent to it while there is a reason."""
    found = []
    try:
        async with asyncio.timeout(_DATABASE_SECONDS):
            wrong = await services.store.healthy()
    except TimeoutError:
        wrong = "no answer"
    if wrong is not None:
        found.append("the database does not work")
    if not services.directory.listed():
        found.append("the adapters are not listed yet")
    return found


async def degradations(services: Services) -> list[str]:
    """Why clients may not get all that they ask for, beyond the hindrances."""
    found = await hindrances(services)
    found += [f"{name} does not work" for name, check in sorted(services.checks.items()) if check() is not None]
    groups = {
        (group.namespace, group.deployment, group.adapter): group
        for group in (adapter.servers for adapter in services.directory.adapters(None))
    }
    missing = {False: "serving Deployments have no ready pod", True: "adapters on Modal have no server yet"}
    for outside, said in missing.items():
        asked = [group for group in groups.values() if group.outside is outside]
        silent = sum(not any(each.ready for each in services.directory.servers(group)) for group in asked)
        if silent:
            found.append(f"{silent} of {len(asked)} {said}")
    return found
