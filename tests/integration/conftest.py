"""Fixtures of the integration tier."""

from collections.abc import Iterator

import pytest

from tests.cluster.light import LightCluster, light_cluster


@pytest.fixture(scope="session")
def api_server() -> Iterator[LightCluster]:
    """A real API server, started for this session and stopped with it."""
    with light_cluster() as cluster:
        yield cluster
