"""LoraAdapters that the gateway makes of a template, as the real API server has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from claas_gateway.adapters.models import LONGEST_ID, LoraInitRequest
from claas_gateway.adapters.planning import new_manifest
from claas_gateway.adapters.template import parse_template
from tests.cluster.light import LightCluster
from tests.integration.api.manifests import ADAPTER, CRD_FOLDER, ApiServer, at

pytestmark = pytest.mark.integration

NAMESPACE = "made-adapters"
TEMPLATE = parse_template({"namespace": NAMESPACE, "spec": ADAPTER["spec"]})


@pytest.fixture(scope="module")
def server(api_server: LightCluster) -> Iterator[ApiServer]:
    server = ApiServer(api_server, NAMESPACE)
    server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD_FOLDER))
    server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    server.kubectl("create", "namespace", NAMESPACE)
    yield server
    server.close()


@pytest.mark.parametrize(
    "lora_id",
    [
        "tone",
        "acme/Tone",
        "acme/tone-v1",
        "7B",
        "a" * LONGEST_ID,
        f"{'a/' * (LONGEST_ID // 2 - 1)}b",
        "A.b_C/d-",
        "0",
    ],
)
@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"]])
def test_every_identifier_makes_an_adapter_that_is_accepted(
    server: ApiServer, lora_id: str, targets: list[str] | None
) -> None:
    request = LoraInitRequest(lora_id=lora_id, lora_r=128, lora_alpha=256, target_modules=targets)
    answer = server.create(new_manifest(TEMPLATE, request, f"{lora_id.rpartition('/')[2]}-0123abcd"), dry_run=True)
    assert answer.status == 201, answer
    assert at(answer.body, "spec.loraId") == lora_id
