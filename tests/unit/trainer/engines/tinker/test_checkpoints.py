"""How long the service is asked to keep which checkpoint."""

from __future__ import annotations

import pytest

from claas_trainer.engines.tinker.checkpoints import SHORTEST_SECONDS, limits_to_set

TTL = 86400


@pytest.mark.parametrize(
    ("kept", "superseded", "abandoned", "done", "due"),
    [
        # The first step: version 0 has no checkpoints.
        (["one"], [], ["one"], {}, {}),
        (["three", "two"], ["one"], ["three"], {}, {"one": TTL}),
        # Once is enough.
        (["three", "two"], ["one"], [], {"one": TTL}, {}),
        # A limit that was changed since holds for checkpoints from then on.
        (["four", "three"], ["one", "two"], [], {"one": 7200}, {"two": TTL}),
        # A rollback: the next step started from version 1 again.
        (["four", "one"], ["two", "three"], [], {"one": TTL, "two": TTL}, {"one": None, "three": TTL}),
        # An attempt that saved its step and published nothing.
        (["two", "one"], [], ["lost", "two"], {}, {"lost": SHORTEST_SECONDS}),
        (["two", "one"], [], ["lost"], {"lost": SHORTEST_SECONDS}, {}),
        # Its step was published by a later attempt in the end.
        (["lost", "one"], [], ["lost"], {"lost": SHORTEST_SECONDS}, {"lost": None}),
    ],
)
def test_head_and_parent_are_kept_and_all_else_is_given_a_limit_once(
    kept: list[str], superseded: list[str], abandoned: list[str], done: dict[str, int], due: dict[str, int | None]
) -> None:
    assert limits_to_set(kept, superseded, abandoned, done, TTL) == due
