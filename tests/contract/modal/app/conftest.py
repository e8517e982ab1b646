"""A peer with the trainer's app, and a local adapter on the same model, for each module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch

from claas_trainer.store.versions import StoredVersion, VersionStore
from tests.builders.models import build_tiny_qwen3
from tests.builders.training.token_samples import LocalChain
from tests.contract.modal.app.deployed import DeployedTrainer, deploy, put_model
from tests.peers.modal.server import ModalPeer


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The number of threads is part of a version's provenance; containers are told the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def platform(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalPeer]:
    """With the model uploaded and the app deployed."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with ModalPeer(tmp_path_factory.mktemp("platform"), container_environment=threads) as peer:
        put_model(peer, tiny)
        deploy(peer)
        yield peer


@pytest.fixture
async def trainer(platform: ModalPeer) -> AsyncIterator[DeployedTrainer]:
    """With nothing that goes wrong."""
    made = DeployedTrainer.at(platform)
    yield made
    platform.clear_failures()
    await made.connection.close()


@pytest.fixture(scope="module")
def local(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalChain:
    """An adapter with version 0, for the local engine."""
    chain = LocalChain(VersionStore(tmp_path_factory.mktemp("store")), tiny)
    chain.initial()
    return chain


@pytest.fixture(scope="module")
def first(local: LocalChain) -> StoredVersion:
    """Version 0."""
    return local.store.read(0)
