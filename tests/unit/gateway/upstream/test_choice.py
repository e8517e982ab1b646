"""Which pod takes a request."""

from __future__ import annotations

import pytest

from claas_gateway.directory.models import Server
from claas_gateway.upstream.choice import choose


def server(uid: str, *, ready: bool = True, may_sleep: bool = False) -> Server:
    return Server("team", uid, uid, "http://x", ready, may_sleep)


@pytest.mark.parametrize(
    ("servers", "in_flight", "tried", "chosen"),
    [
        ([], {}, set(), None),
        ([server("a", ready=False)], {}, set(), None),
        ([server("a"), server("b")], {"a": 2, "b": 1}, set(), "b"),
        ([server("a"), server("b")], {"a": 1}, set(), "b"),
        ([server("a", may_sleep=True), server("b")], {"b": 99}, set(), "b"),
        ([server("a", may_sleep=True), server("b", ready=False)], {}, set(), "a"),
        ([server("a", may_sleep=True), server("b", may_sleep=True)], {"a": 1}, set(), "b"),
        ([server("a"), server("b")], {}, {"a"}, "b"),
        ([server("a", may_sleep=True), server("b")], {}, {"b"}, "a"),
        ([server("a")], {}, {"a"}, None),
    ],
)
def test_the_ready_pod_with_the_least_to_do_that_does_not_sleep_takes_a_request(
    servers: list[Server], in_flight: dict[str, int], tried: set[str], chosen: str | None
) -> None:
    found = choose(servers, in_flight, tried)
    assert (found.uid if found is not None else None) == chosen
