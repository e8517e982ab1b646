"""Checkpoints of superseded versions at the service get a time to live, once, and a failure stops nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from claas_crds.v1alpha1.training import TrainingConfig
from claas_tinker_client.connection import Account, TinkerConnection
from claas_tinker_client.version_file import TinkerVersion
from claas_trainer.engines.tinker.checkpoints import tidy
from tests.contract.tinker.both_engines import Side, samples, tinker_side
from tests.peers.tinker.calls import Operation
from tests.peers.tinker.failures import Answer
from tests.peers.tinker.server import TinkerPeer

pytestmark = pytest.mark.contract

TTL = 7200


@pytest.fixture
def peer(tinker_model: Path) -> Iterator[TinkerPeer]:
    with TinkerPeer(tinker_model) as peer:
        yield peer


async def tidied(side: Side, head: int) -> None:
    connection = TinkerConnection(Account(side.key_file, side.peer.url))
    try:
        await tidy(connection, side.store, head, TTL)
    finally:
        await connection.close()


def limited(side: Side, version: int) -> list[bool]:
    made = TinkerVersion.read(side.store.read(version).folder)
    paths = [path for path in (made.state_path, made.sampler_path) if path is not None]
    return [side.peer.checkpoints.get(path).expires is not None for path in paths]


async def test_what_is_neither_head_nor_parent_expires(tmp_path: Path, tinker_model: Path, peer: TinkerPeer) -> None:
    side = tinker_side(tmp_path / "adapter", tinker_model, peer)
    for seed in (1, 2, 3):
        await side.step(samples(seed, recorded=False), TrainingConfig(learning_rate=1e-3))
    peer.fail(Operation.SET_TTL, Answer(400))
    await tidied(side, 3)
    assert not any(limited(side, 1))
    peer.clear_failures()
    await tidied(side, 3)
    assert [limited(side, number) for number in (1, 2, 3)] == [[True, True], [False, False], [False, False]]
    asked = len(peer.called(Operation.SET_TTL))
    await tidied(side, 3)
    assert len(peer.called(Operation.SET_TTL)) == asked
