"""Fixtures that more than one contract test uses."""

from collections.abc import Iterator

import pytest

from tests.builders.models import build_tiny_qwen3, build_versions
from tests.contract.site import API_KEY, PARSERS, TOKEN, VERSIONS, Site
from tests.contract.vllm_server import CompanionSetup, VllmServer


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The shared server. Starting it is most of these tests' time: leave it awake, without your served names."""
    root = tmp_path_factory.mktemp("vllm")
    model = build_tiny_qwen3(root / "model")
    companion = CompanionSetup(root / "token", root / "aliases")
    companion.token_file.write_text(TOKEN + "\n")
    server = VllmServer(model, root / "vllm.log", companion, API_KEY, {}, PARSERS).launch()
    try:
        versions = build_versions(model, root / "storage", count=VERSIONS)
        yield Site(server.wait_until_ready(), companion, versions, root)
    finally:
        server.stop()
