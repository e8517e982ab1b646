"""Each of many items ends in exactly one version, or refused with a reason, whatever is killed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.gateway.many_items import ManyItems, Pace
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import Scene


@pytest.fixture
def killed_operator(operator_process: OperatorProcess) -> Iterator[OperatorProcess]:
    """The session's operator, which is killed and started again."""
    if not operator_process.running:
        operator_process.start_leading()
    yield operator_process
    if not operator_process.running:
        operator_process.start_leading()


def _run(scene: Scene, operator: OperatorProcess, folder: Path, count: int, pace: Pace, seconds: float) -> None:
    many = ManyItems(scene, operator, folder, count, pace, seed=count)
    try:
        outcome = many.run(seconds)
        many.check()
        print(outcome)
        assert outcome.kills["gateway"] >= 2
    finally:
        many.close()
        print(many.gateway.tail())


@pytest.mark.integration
def test_five_hundred_items_while_gateway_and_operator_are_killed(
    killed_operator: OperatorProcess, scene: Scene, tmp_path: Path
) -> None:
    _run(scene, killed_operator, tmp_path, 500, Pace(), seconds=480)


@pytest.mark.long
def test_ten_thousand_items_while_gateway_and_operator_are_killed(
    killed_operator: OperatorProcess, scene: Scene, tmp_path: Path
) -> None:
    _run(scene, killed_operator, tmp_path, 10_000, Pace(gateway=(3.0, 15.0), operator=(10.0, 40.0)), seconds=3000)
