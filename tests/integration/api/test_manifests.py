"""CRDs, examples and documentation against the real API server, as users of kubectl meet them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from pydantic import JsonValue

from claas_crds.v1alpha1.conditions import Condition
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_crds.v1alpha1.step import JobPhase
from tests.cluster.errors import CommandError
from tests.cluster.host import process
from tests.cluster.light import LightCluster
from tests.cluster.paths import REPOSITORY_ROOT
from tests.cluster.services.binaries import Binary, ensure
from tests.integration.api.manifests import (
    ADAPTER,
    CHART,
    CRD_FOLDER,
    JOB,
    SAMPLE,
    ApiServer,
    Object,
    at,
    changed,
    documents,
    fenced_manifests,
)

pytestmark = pytest.mark.integration

NAMESPACE = "manifests"
DISCOVERY_TIMEOUT_SECONDS = 30.0
INLINE_SAMPLES_BYTES = 900 * 1024


@pytest.fixture(scope="module")
def server(api_server: LightCluster) -> Iterator[ApiServer]:
    server = ApiServer(api_server, NAMESPACE)
    server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD_FOLDER))
    server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    server.kubectl("create", "namespace", NAMESPACE)
    yield server
    server.close()


@pytest.fixture(scope="session")
def helm() -> Path:
    return ensure([Binary.HELM])[Binary.HELM]


def explained(server: ApiServer, path: str) -> str:
    """`kubectl explain`, once the API server has published the new schemas."""
    deadline = time.monotonic() + DISCOVERY_TIMEOUT_SECONDS
    while True:
        try:
            return server.kubectl("explain", path)
        except CommandError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.mark.parametrize("name", ["loraadapters.claas.dev", "distilljobs.claas.dev"])
def test_a_crd_is_established_and_structural(server: ApiServer, name: str) -> None:
    definition = json.loads(server.kubectl("get", "crd", name, "-o", "json"))
    conditions = {each["type"]: each["status"] for each in definition["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    # Only a schema that is not structural gets this condition.
    assert "NonStructuralSchema" not in conditions


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("loraadapter", ["A LoRA adapter that keeps learning"]),
        (
            "loraadapter.spec.serving",
            ["The servers of the adapter", "maxPauseSeconds", "Longest pause of serving"],
        ),
        ("lad.spec.serving.tinkerProxy", ["The operator makes Deployment and Service", "replicas"]),
        ("lad.spec.engine", ["exactly one engine with its settings", "stays with their engine"]),
        ("lad.spec.engine.tinker.apiKeySecretRef", ["The API key, in a Secret of the same namespace"]),
        ("lad.spec.training.learning_rate", ["Step size of AdamW"]),
        ("distilljob.spec.samples", ["The feedback. Immutable.", "secretRef"]),
        ("dj.spec.samples.inline", ["user_prompt", "-required-"]),
        ("distilljob.status.timings", ["servingGap", "The pause that clients notice"]),
    ],
)
def test_kubectl_explains_the_fields(server: ApiServer, path: str, texts: list[str]) -> None:
    said = " ".join(explained(server, path).split())
    for text in texts:
        assert text in said


def condition(condition_type: str, reason: str, message: str, *, holds: bool = True) -> Condition:
    return Condition.model_validate(
        {
            "type": condition_type,
            "status": str(holds),
            "reason": reason,
            "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    )


def wire(status: LoraAdapterStatus | DistillJobStatus) -> JsonValue:
    return cast(JsonValue, status.model_dump(mode="json", by_alias=True, exclude_none=True))


def table(text: str) -> list[dict[str, str]]:
    """kubectl's output as rows by column; columns are as wide as the header says."""
    header, *rows = text.splitlines()
    starts = [match.start() for match in re.finditer(r"\S+", header)]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    return [{header[a:b].strip(): row[a:b].strip() for a, b in spans} for row in rows]


def test_kubectl_get_shows_what_an_adapter_serves(server: ApiServer) -> None:
    adapter = changed(ADAPTER, "metadata.name", "shown")
    assert server.create(adapter).status == 201
    status = LoraAdapterStatus(
        conditions=[condition("Ready", "Serving", "1 pods serve version 6")],
        served_version=6,
        latest_version=7,
        ready_replicas="1/1",
        current_job="step",
    )
    answer = server.merge(adapter, {"status": wire(status)}, subresource="/status")
    assert answer.status == 200, answer.message
    narrow = table(server.kubectl("get", "lad", "shown"))[0]
    assert list(narrow) == ["NAME", "READY", "REASON", "VERSION", "AGE"]
    assert (narrow["READY"], narrow["REASON"], narrow["VERSION"]) == ("True", "Serving", "6")
    wide = table(server.kubectl("get", "loraadapters", "shown", "-o", "wide"))[0]
    assert {name: wide[name] for name in ("LATEST", "REPLICAS", "DEPLOYMENT", "JOB", "MESSAGE")} == {
        "LATEST": "7",
        "REPLICAS": "1/1",
        "DEPLOYMENT": "vllm",
        "JOB": "step",
        "MESSAGE": "1 pods serve version 6",
    }


def test_kubectl_get_shows_what_came_of_a_job_and_kubectl_wait_sees_its_end(server: ApiServer) -> None:
    job = changed(JOB, "metadata.name", "shown")
    assert server.create(job).status == 201
    status = DistillJobStatus(
        phase=JobPhase.SUCCEEDED,
        conditions=[condition("Complete", "Completed", "Version 7 is in service")],
        produced_version=7,
        attempts=2,
        loss="0.125",
        serving_gap="1.9s",
        reason="Completed",
        message="Version 7 is in service",
    )
    answer = server.merge(job, {"status": wire(status)}, subresource="/status")
    assert answer.status == 200, answer.message
    wide = table(server.kubectl("get", "dj", "shown", "-o", "wide"))[0]
    wide.pop("AGE")
    assert wide == {
        "NAME": "shown",
        "ADAPTER": "tone",
        "PHASE": "Succeeded",
        "VERSION": "7",
        "LOSS": "0.125",
        "GAP": "1.9s",
        "ATTEMPTS": "2",
        "REASON": "Completed",
        "MESSAGE": "Version 7 is in service",
    }
    assert "condition met" in server.kubectl("wait", "--for=condition=Complete", "dj/shown", "--timeout=10s")


def test_both_kinds_are_in_the_category(server: ApiServer) -> None:
    for name in ("loraadapters", "distilljobs"):
        assert name in server.kubectl("api-resources", "--categories=claas", "-o", "name")


def big_job(name: str) -> Object:
    """A job whose inline samples are about 900 KiB as JSON, with the token ids and logprobs of recorded rollouts."""
    tokens: JsonValue = [*range(100_000, 100_600)]
    logprobs: JsonValue = [-0.123456] * 600
    sample: Object = {
        **SAMPLE,
        "response": "word " * 600,
        "response_token_ids": tokens,
        "response_logprobs": logprobs,
    }
    count = INLINE_SAMPLES_BYTES // len(json.dumps(sample))
    return changed(changed(JOB, "metadata.name", name), "spec.samples.inline", [sample] * count)


def test_a_job_of_900_kib_is_accepted_by_server_side_apply_and_costs_one_managed_field(server: ApiServer) -> None:
    job = big_job("big")
    assert len(json.dumps(job)) > 0.98 * INLINE_SAMPLES_BYTES
    assert "serverside-applied" in server.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(job))
    stored = json.loads(server.kubectl("get", "dj", "big", "-o", "json", "--show-managed-fields"))
    given = cast(list[Object], at(job, "spec.samples.inline"))
    # The API server adds the defaults of the fields that were left out.
    kept = [{name: each[name] for name in given[0]} for each in stored["spec"]["samples"]["inline"]]
    assert kept == given
    assert len(json.dumps(stored["metadata"]["managedFields"])) < 1024
    assert "annotations" not in stored["metadata"]


def test_the_operators_writes_to_a_big_job_stay_small_and_are_not_refused(server: ApiServer) -> None:
    job = big_job("big-status")
    assert server.apply(job, "user").status == 201
    status = wire(
        DistillJobStatus(phase=JobPhase.QUEUED, conditions=[condition("Admitted", "Queued", "Soon.", holds=False)])
    )
    assert server.merge(job, {"status": status}, subresource="/status").status == 200
    assert server.merge(job, {"spec": {"suspend": True}}).status == 200
    refused = server.merge(job, {"spec": {"samples": {"inline": [SAMPLE]}}})
    assert "samples is immutable" in refused.message
    stored = json.loads(server.kubectl("get", "dj", "big-status", "-o", "json", "--show-managed-fields"))
    assert len(json.dumps(stored["metadata"]["managedFields"])) < 4096


def test_client_side_apply_of_a_big_job_is_refused_by_kubernetes_as_the_documentation_says(server: ApiServer) -> None:
    with pytest.raises(CommandError, match=r"metadata\.annotations: Too long"):
        server.kubectl("apply", "-f", "-", stdin=json.dumps(big_job("big-client")))


EXAMPLES = sorted((REPOSITORY_ROOT / "docs" / "examples").glob("*.yaml"))
PAGES = [
    page
    for page in [REPOSITORY_ROOT / "README.md", *sorted((REPOSITORY_ROOT / "docs").glob("*.md"))]
    if page.exists()
]
FOREIGN = ("fluxcd.io/",)
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(fenced_manifests(page.read_text()))
    if not any(group in str(each["apiVersion"]) for group in FOREIGN for each in documents(block))
]


def accepts(server: ApiServer, text: str) -> None:
    """The API server accepts every object of the text, without keeping any."""
    objects = documents(text)
    assert objects
    output = server.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=text)
    assert output.count("serverside-applied (server dry run)") == len(objects), output


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_accepted(server: ApiServer, example: Path) -> None:
    accepts(server, example.read_text())


def test_the_examples_that_the_pages_name_are_there() -> None:
    named = {name for page in PAGES for name in re.findall(r"examples/([a-z-]+\.yaml)", page.read_text())}
    assert named == {path.name for path in EXAMPLES}


@pytest.mark.parametrize("name", ["share-resource-claim.yaml", "share-runtime-class.yaml"])
def test_no_pod_that_shares_weights_asks_for_the_hosts_namespaces_or_a_privilege(name: str) -> None:
    text = (REPOSITORY_ROOT / "docs" / "examples" / name).read_text()
    manifests = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for asked in ("hostPID", "hostIPC", "hostNetwork", "hostPath", "privileged", "--enable-sleep-mode"):
        assert asked not in manifests
    assert "--worker-extension-cls=claas_vllm.WeightExport" in manifests
    assert "handover: Share" in manifests


@pytest.mark.parametrize("block", BLOCKS)
def test_a_manifest_in_the_documentation_is_accepted(server: ApiServer, block: str) -> None:
    accepts(server, block)


def test_the_manifests_that_helm_prints_after_an_install_are_accepted(server: ApiServer, helm: Path) -> None:
    notes = process.run([helm, "install", "claas", CHART, "--dry-run=client"]).split("NOTES:", 1)[1]
    # Each manifest is indented by two spaces and ends with the first line that is not.
    manifests = [
        re.sub(r"^  ", "", block, flags=re.MULTILINE) for block in re.findall(r"(?:^  .*\n)+", notes, re.MULTILINE)
    ]
    manifests = [text for text in manifests if text.startswith("apiVersion:")]
    assert len(manifests) == 2
    for text in manifests:
        accepts(server, text)


def test_the_gpu_examples_give_both_pods_the_same_gpu() -> None:
    by_claim = {
        str(each["kind"]): each for each in documents((EXAMPLES[0].parent / "gpu-resource-claim.yaml").read_text())
    }
    name = at(by_claim["ResourceClaim"], "metadata.name")
    assert at(by_claim["Deployment"], "spec.template.spec.resourceClaims.0.resourceClaimName") == name
    assert at(by_claim["LoraAdapter"], "spec.trainer.resourceClaims.0.resourceClaimName") == name
    by_class = {
        str(each["kind"]): each for each in documents((EXAMPLES[0].parent / "gpu-runtime-class.yaml").read_text())
    }
    runtime = at(by_class["Deployment"], "spec.template.spec.runtimeClassName")
    assert runtime == at(by_class["LoraAdapter"], "spec.trainer.runtimeClassName") == "nvidia"
    assert at(by_class["LoraAdapter"], "spec.trainer.sameNodeAsServing") is True
