"""Fixtures of the integration tier."""

from collections.abc import Iterator

import pytest

from tests.cluster.light import LightCluster, light_cluster
from tests.simulation.fixtures import operator, operator_process, scene, simulation

__all__ = ["api_server", "operator", "operator_process", "scene", "simulation"]


@pytest.fixture(scope="session")
def api_server() -> Iterator[LightCluster]:
    """A real API server, started for this session and stopped with it."""
    with light_cluster() as cluster:
        yield cluster
