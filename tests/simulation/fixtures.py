"""Fixtures of the tests that run the operator's process: one API server, one operator, a namespace for each test."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import pytest

from tests.cluster.light import LightCluster
from tests.cluster.services.control_plane import free_ports
from tests.simulation.operator_process import OperatorProcess, install
from tests.simulation.scene import Scene, Simulation


@pytest.fixture(scope="session")
def simulation(api_server: LightCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """The played node on the session's API server, with the CRDs installed."""
    install(api_server)
    simulation = Simulation(api_server, tmp_path_factory.mktemp("simulation"))
    yield simulation
    simulation.close()


@pytest.fixture(scope="session")
def operator_process(simulation: Simulation) -> Iterator[OperatorProcess]:
    """The session's operator; tests that kill it leave it dead, and the next test starts it again."""
    process = OperatorProcess(simulation.cluster, simulation.folder / "operator.log", health_port=free_ports(1)[0])
    yield process
    if process.running:
        process.stop()


@pytest.fixture
def operator(operator_process: OperatorProcess) -> Iterator[OperatorProcess]:
    """The operator, leading; what it logs meanwhile is shown when the test fails."""
    if not operator_process.running:
        operator_process.start_leading()
    yield operator_process
    print(operator_process.tail())


@pytest.fixture
def scene(simulation: Simulation, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A namespace of the test's own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-")
    scene = Scene(simulation, f"{name}-{uuid.uuid4().hex[:4]}")
    scene.set_up()
    yield scene
    scene.tear_down()
