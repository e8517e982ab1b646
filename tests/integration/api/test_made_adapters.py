"""LoraAdapters that the gateway makes of a template, as the real API server has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from claas_gateway.adapters.models import LONGEST_ID, LoraInitRequest
from claas_gateway.adapters.planning import new_manifest
from claas_gateway.adapters.template import parse_template
from tests.cluster.light import LightCluster
from tests.integration.api.manifests import ADAPTER, CRD_FOLDER, ApiServer, Object, at, changed

pytestmark = pytest.mark.integration

NAMESPACE = "made-adapters"
TEMPLATE = parse_template({"namespace": NAMESPACE, "spec": ADAPTER["spec"]})
BY_MODAL = changed(ADAPTER, "spec.engine", {"modal": {}})
"""Its steps are taken on Modal."""
SERVED_BY_MODAL = changed(
    BY_MODAL, "spec.serving", {"modalApp": {}, "controlTokenSecretRef": {"name": "vllm-control"}}
)
"""And a vLLM there answers."""


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


@pytest.mark.parametrize("adapter", [BY_MODAL, SERVED_BY_MODAL])
def test_a_template_for_steps_on_modal_makes_an_adapter_that_is_accepted(server: ApiServer, adapter: Object) -> None:
    template = parse_template({"namespace": NAMESPACE, "spec": adapter["spec"]})
    request = LoraInitRequest(lora_id="acme/tone-v1", lora_r=32, lora_alpha=64)
    answer = server.create(new_manifest(template, request, "tone-v1-0123abcd"), dry_run=True)
    assert answer.status == 201, answer
    assert at(answer.body, "spec.engine.modal.app") == "claas-trainer"
    assert ("modalApp" in at(answer.body, "spec.serving")) == (adapter is SERVED_BY_MODAL)  # type: ignore[operator]
