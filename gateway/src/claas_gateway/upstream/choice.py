"""Which pod takes a request."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from claas_gateway.directory.models import Server


def choose(servers: Sequence[Server], in_flight: Mapping[str, int], tried: Container[str] = ()) -> Server | None:
    """The ready pod with the fewest requests in flight; one that may sleep only if no other is ready.

    `in_flight` counts by UID; pods whose UID is in `tried` did not answer this request. None: no pod is left.
    """
    ready = [server for server in servers if server.ready and server.uid not in tried]
    awake = [server for server in ready if not server.may_sleep]
    return min(awake or ready, key=lambda server: in_flight.get(server.uid, 0), default=None)
