"""Every rule of the two schemas, as the real API server has it: what is refused, filled in, and kept from change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import JsonValue

from claas_crds.v1alpha1.distill_job import LARGEST_INLINE_BYTES
from claas_crds.v1alpha1.trainer_pod import TrainerPod
from tests.cluster.light import LightCluster
from tests.integration.api.manifests import ADAPTER, CRD_FOLDER, JOB, SAMPLE, ApiServer, Object, at, changed, without

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(api_server: LightCluster) -> Iterator[ApiServer]:
    server = ApiServer(api_server, "schema-rules")
    server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD_FOLDER))
    server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    server.kubectl("create", "namespace", "schema-rules")
    yield server
    server.close()


HUB: Object = {"repository": "Qwen/Qwen3-8B"}
TRAINER = "spec.trainer"

NO_QUANTITIES: list[JsonValue] = ["half", "1 Gi", "4GB", "", -1, -0.5, "-1", False, {}, [], {"a": 1}, [1]]
NO_TARGETS: list[JsonValue] = [[], "", 7, -1, 0, 1.5, True, False, {}, {"a": 1}, [""], [7], [["q_proj"]], ["a"] * 257]
NO_ENGINES: list[JsonValue] = [[], ["local"], 1, 0.5, True, {"local": "quantum"}]
OWN_PATHS = (
    *("/", "/tmp", "//tmp/", "/dev", "/dev/termination-log", "/var", "/var/lib", "/var/run/", "/run"),
    *("/var/lib/claas", "/var/lib/claas/storage", "/var//lib/claas/model/x", "/var/run/claas/input/x", "/run/claas"),
)


def mounted_at(*paths: str) -> JsonValue:
    """`spec.trainer` with a volume there."""
    mounts: list[JsonValue] = [{"name": "a", "mountPath": path} for path in paths]
    return {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": mounts}


def proxied(**changes: JsonValue) -> JsonValue:
    """A spec with an inference proxy, and with changes by path (`a__b`)."""
    return served_by("tinkerProxy", "tinker", changes)


def on_modal(**changes: JsonValue) -> JsonValue:
    """A spec with a vLLM on Modal, and with changes by path (`a__b`)."""
    return served_by("modalApp", "modal", changes)


def served_by(servers: str, engine: str, changes: dict[str, JsonValue]) -> JsonValue:
    """A spec with these servers and this engine."""
    spec = dict(changed(ADAPTER, "spec.serving", {servers: {}})["spec"])  # type: ignore[arg-type]
    whole: Object = {"spec": {**spec, "engine": {engine: {}}}}
    for path, value in changes.items():
        whole = changed(whole, "spec." + path.replace("__", "."), value)
    return whole["spec"]


WRONG_WITH_A_PROXY: list[tuple[dict[str, JsonValue], str]] = [
    ({"serving__tinkerProxy": {"replicas": 0}}, "spec.serving.tinkerProxy.replicas in body should be greater than"),
    ({"serving__container": "vllm"}, "container is about a vLLM in the cluster"),
    ({"serving__apiKeySecretRef": {"name": "a"}}, "apiKeySecretRef is about a vLLM in the cluster"),
    ({"serving__scheme": "https"}, "scheme is about a vLLM in the cluster"),
    ({"serving__handover": "Sleep"}, "only a vLLM in the cluster is ever paused"),
    ({"lora": {"alpha": 32}}, "the Tinker service chooses alpha itself"),
    ({"training": {"teacher": "ema"}}, "with serving.tinkerProxy the teacher is the base model"),
    ({"training": {"support": "full"}}, "with serving.tinkerProxy the support can be top_k_tail"),
    ({"training": {"teacher_top_k": 21}}, "with serving.tinkerProxy teacher_top_k can be 20 at most"),
]
WRONG_ON_MODAL: list[tuple[dict[str, JsonValue], str]] = [
    ({"serving__modalApp": {"app": "Claas"}}, "spec.serving.modalApp.app in body should match"),
    ({"serving__modalApp": {"app": "a.b"}}, "spec.serving.modalApp.app in body should match"),
    ({"serving__modalApp": {"server": "a/b"}}, "spec.serving.modalApp.server in body should match"),
    ({"serving__modalApp": {"proxyTokenSecretRef": {}}}, "proxyTokenSecretRef.name: Required value"),
    ({"serving__deploymentRef": {"name": "vllm"}}, "exactly one of deploymentRef, tinkerProxy and modalApp"),
    ({"serving__container": "vllm"}, "container is about a vLLM in the cluster"),
    ({"serving__apiKeySecretRef": {"name": "a"}}, "apiKeySecretRef is about a vLLM in the cluster"),
    ({"serving__scheme": "https"}, "scheme is about a vLLM in the cluster"),
    ({"serving__handover": "Share"}, "only a vLLM in the cluster is ever paused"),
    ({"engine": {"modal": {"app": "a/b"}}}, "spec.engine.modal.app in body should match"),
    ({"engine": {"modal": {"volume": "../b"}}}, "spec.engine.modal.volume in body should match"),
    ({"engine": {"modal": {"environment": ""}}}, "spec.engine.modal.environment in body should be at least 1"),
    ({"engine": {"modal": {"keepState": "Both"}}}, 'spec.engine.modal.keepState: Unsupported value: "Both"'),
    ({"engine": {"modal": {"tokenSecretRef": {}}}}, "spec.engine.modal.tokenSecretRef.name: Required value"),
    ({"engine": {"modal": {"tokenSecretRef": {"name": "a", "key": "b"}}}}, "unknown field"),
    ({"engine": {"modal": {"stepTimeoutSeconds": 59}}}, "spec.engine.modal.stepTimeoutSeconds in body"),
    ({"engine": {"modal": {"supersededStateTtlSeconds": 60}}}, "spec.engine.modal.supersededStateTtlSeconds in"),
    ({"engine": {"modal": {}, "local": {}}}, "spec.engine: Too many: 2: must have at most 1 item"),
]
WRONG_ADAPTERS: list[tuple[str, JsonValue, str]] = [
    ("spec.loraId", "a//b", "spec.loraId in body should match"),
    ("spec.loraId", "a@7", "spec.loraId in body should match"),
    ("spec.loraId", "a/../b", "spec.loraId in body should match"),
    ("spec.loraId", "", "spec.loraId in body should be at least 1 chars long"),
    ("spec.loraId", "a" * 201, "spec.loraId: Too long: may not be more than 200 bytes"),
    ("spec.model.name", "", "spec.model.name in body should be at least 1 chars long"),
    ("spec.model.source", {}, 'spec.model.source: Invalid value: "object": exactly one of persistentVolumeClaim'),
    (
        "spec.model.source.hub",
        HUB,
        'spec.model.source: Invalid value: "object": exactly one of persistentVolumeClaim',
    ),
    ("spec.model.source.persistentVolumeClaim.claimName", "", "persistentVolumeClaim.claimName"),
    ("spec.model.source.persistentVolumeClaim.path", "/root", "persistentVolumeClaim.path in body should match"),
    ("spec.model.source.persistentVolumeClaim.path", "a/..", "persistentVolumeClaim.path in body should match"),
    ("spec.model.source", {"hub": {}}, "spec.model.source.hub.repository: Required value"),
    ("spec.model.source", {"hub": {"repository": "../x"}}, "spec.model.source.hub.repository in body should match"),
    ("spec.model.source", {"hub": {"repository": "a/b/c"}}, "spec.model.source.hub.repository in body should match"),
    ("spec.lora.rank", 3, "spec.lora.rank in body should be greater than or equal to 4"),
    ("spec.lora.rank", 129, "spec.lora.rank in body should be less than or equal to 128"),
    ("spec.lora.rank", "32", 'spec.lora.rank: Invalid value: "string"'),
    ("spec.lora.alpha", 0, "spec.lora.alpha in body should be greater than or equal to 1"),
    ("spec.lora.alpha", 257, "spec.lora.alpha in body should be less than or equal to 256"),
    *(("spec.lora.targetModules", wrong, "spec.lora.targetModules") for wrong in NO_TARGETS),
    ("spec.engine", "quantum", "spec.engine in body should match '^(local|tinker|modal)$'"),
    ("spec.engine", {}, "spec.engine"),
    ("spec.engine", {"quantum": {}}, "spec.engine"),
    ("spec.engine", {"local": {}, "tinker": {}}, "spec.engine: Too many: 2: must have at most 1 item"),
    ("spec.engine", {"tinker": {"key": "tml-x"}}, 'unknown field "spec.engine.tinker.key"'),
    ("spec.engine", {"tinker": {"apiKeySecretRef": {}}}, "spec.engine.tinker.apiKeySecretRef.name: Required value"),
    ("spec.engine", {"tinker": {"baseUrl": "tinker"}}, "spec.engine.tinker.baseUrl in body should match"),
    ("spec.engine", {"tinker": {"baseModel": ""}}, "spec.engine.tinker.baseModel in body should be at least 1"),
    ("spec.engine", {"tinker": {"stepTimeoutSeconds": 59}}, "spec.engine.tinker.stepTimeoutSeconds in body"),
    ("spec.engine", {"tinker": {"supersededCheckpointTtlSeconds": 60}}, "spec.engine.tinker.supersededCheckpointTtl"),
    ("spec.engine", {"tinker": {"export": "yes"}}, "spec.engine.tinker.export"),
    ("spec.serving.tinkerProxy", {}, "exactly one of deploymentRef, tinkerProxy and modalApp must be set"),
    *(("spec", proxied(**wrong), message) for wrong, message in WRONG_WITH_A_PROXY),
    *(("spec", on_modal(**wrong), message) for wrong, message in WRONG_ON_MODAL),
    ("spec.serving.deploymentRef.name", "vllm.modal", "names that end with .modal stand for apps on Modal"),
    ("spec.engine", {"local": {}, "quantum": {}}, "spec.engine: Too many: 2: must have at most 1 item"),
    ("spec.engine", {"local": {"quantum": 1}}, 'unknown field "spec.engine.local.quantum"'),
    *(("spec.engine", wrong, "spec.engine") for wrong in NO_ENGINES),
    ("spec.serving", {}, "exactly one of deploymentRef, tinkerProxy and modalApp must be set"),
    ("spec.serving.deploymentRef", {}, "spec.serving.deploymentRef.name: Required value"),
    ("spec.serving.deploymentRef.name", "vLLM", "spec.serving.deploymentRef.name in body should match"),
    ("spec.serving.controlTokenSecretRef", {"name": "a/b"}, "controlTokenSecretRef.name in body should match"),
    ("spec.serving.controlTokenSecretRef", {"name": "a", "key": "a/b"}, "SecretRef.key in body should match"),
    ("spec.storage.claimName", "-a", "spec.storage.claimName in body should match"),
    ("spec.serving.port", 0, "spec.serving.port in body should be greater than or equal to 1"),
    (
        "spec.serving.scheme",
        "tls",
        'spec.serving.scheme: Unsupported value: "tls": supported values: "http", "https"',
    ),
    ("spec.serving.tls", {}, "tls needs scheme: https"),
    ("spec.serving.port", 65536, "spec.serving.port in body should be less than or equal to 65535"),
    ("spec.serving.handover", "Steal", 'spec.serving.handover: Unsupported value: "Steal"'),
    ("spec.serving.maxSlowdown", 0, "spec.serving.maxSlowdown in body should be greater than or equal to 1"),
    ("spec.serving.maxSlowdown", 91, "spec.serving.maxSlowdown in body should be less than or equal to 90"),
    ("metadata.name", "a" * 201, "metadata.name is the served name and may have 200 characters"),
    ("spec.serving.servedName", "a" * 201, "spec.serving.servedName: Too long: may not be more than 200 bytes"),
    ("spec.serving.servedName", "tone@7", "spec.serving.servedName in body should match"),
    ("spec.serving.controlTokenSecretRef", {}, "spec.serving.controlTokenSecretRef.name: Required value"),
    ("spec.serving.apiKeySecretRef", {"name": ""}, "spec.serving.apiKeySecretRef.name in body should be at least 1"),
    ("spec.serving.pause", "Stop", 'spec.serving.pause: Unsupported value: "Stop": supported values: "Keep", "Wait"'),
    ("spec.serving.drainTimeoutSeconds", 0, "spec.serving.drainTimeoutSeconds in body should be greater than"),
    ("spec.serving.drainTimeoutSeconds", 3601, "spec.serving.drainTimeoutSeconds in body should be less than"),
    ("spec.serving.maxPauseSeconds", 0, "spec.serving.maxPauseSeconds in body should be greater than"),
    ("spec.serving.maxPauseSeconds", 3601, "spec.serving.maxPauseSeconds in body should be less than"),
    ("spec.serving.probe.prompt", "", "spec.serving.probe.prompt in body should be at least 1 chars long"),
    ("spec.serving.probe.maxTokens", 0, "spec.serving.probe.maxTokens in body should be greater than"),
    ("spec.serving.probe.maxTokens", 257, "spec.serving.probe.maxTokens in body should be less than"),
    ("spec.storage", {}, "spec.storage.claimName: Required value"),
    ("spec.storage.path", "../other", "spec.storage.path in body should match"),
    ("spec.storage.path", "a/.", "spec.storage.path in body should match"),
    ("spec.storage.path", "/a", "spec.storage.path in body should match"),
    ("spec.storage.path", "", "spec.storage.path in body should match"),
    (f"{TRAINER}.imagePullPolicy", "Sometimes", "spec.trainer.imagePullPolicy: Unsupported value"),
    (f"{TRAINER}.runAsUser", 0, "spec.trainer.runAsUser in body should be greater than or equal to 1"),
    (f"{TRAINER}.fsGroup", 0, "spec.trainer.fsGroup in body should be greater than or equal to 1"),
    (f"{TRAINER}.resourceClaims", [{"name": "gpu"}], "spec.trainer.resourceClaims[0].resourceClaimName: Required"),
    (f"{TRAINER}.resourceClaims", [{"name": "G", "resourceClaimName": "g"}], "resourceClaims[0].name in body should"),
    (f"{TRAINER}.resources.limits", {"memory": True}, "spec.trainer.resources.limits.memory"),
    *(
        (f"{TRAINER}.resources.requests", {"cpu": wrong}, "spec.trainer.resources.requests.cpu")
        for wrong in NO_QUANTITIES
    ),
    (f"{TRAINER}.identity", "Root", 'spec.trainer.identity: Unsupported value: "Root"'),
    (f"{TRAINER}.runAsGroup", -1, "spec.trainer.runAsGroup in body should be greater than or equal to 0"),
    (f"{TRAINER}.env", [{"value": "x"}], "spec.trainer.env[0].name: Required value"),
    (f"{TRAINER}.env", [{"name": "A", "value": 1}], 'spec.trainer.env[0].value: Invalid value: "integer"'),
    (f"{TRAINER}.env", [{"name": "A"}, {"name": "A"}], "spec.trainer.env[1]: Duplicate value"),
    (f"{TRAINER}.volumes", [{"emptyDir": {}}], "spec.trainer.volumes[0].name: Required value"),
    (
        f"{TRAINER}.volumes",
        [{"name": "claas-input", "emptyDir": {}}],
        "names beginning with claas- are the operator's",
    ),
    (
        f"{TRAINER}.volumes",
        [{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}],
        "spec.trainer.volumes[1]: Duplicate value",
    ),
    (f"{TRAINER}.volumeMounts", [{"name": "cache"}], "spec.trainer.volumeMounts[0].mountPath: Required value"),
    *((TRAINER, mounted_at(path), "a mountPath there is the operator's own") for path in OWN_PATHS),
    (TRAINER, mounted_at("tmp"), "spec.trainer.volumeMounts[0].mountPath in body should match"),
    (TRAINER, mounted_at("/a", "/a"), "spec.trainer.volumeMounts[1]: Duplicate value"),
    (f"{TRAINER}.nodeSelector", {"gpu": True}, "spec.trainer.nodeSelector.gpu: Invalid value"),
    ("spec.training.learning_rate", 0, "spec.training.learning_rate in body should be greater than 0"),
    ("spec.training.alpha", 1.1, "spec.training.alpha in body should be less than or equal to 1"),
    ("spec.training.alpha", -0.1, "spec.training.alpha in body should be greater than or equal to 0"),
    ("spec.training.is_clip", 0.5, "spec.training.is_clip in body should be greater than or equal to 1"),
    ("spec.training.is_clip", 20.5, "spec.training.is_clip in body should be less than or equal to 20"),
    ("spec.training.max_grad_norm", -1, "spec.training.max_grad_norm in body should be greater than or equal to 0"),
    ("spec.training.kl_reg_weight", 2, "spec.training.kl_reg_weight in body should be less than or equal to 1"),
    ("spec.training.teacher_top_k", 9, "spec.training.teacher_top_k in body should be greater than or equal to 10"),
    ("spec.training.teacher_top_k", 101, "spec.training.teacher_top_k in body should be less than or equal to 100"),
    ("spec.training.weight_decay", 2, "spec.training.weight_decay in body should be less than or equal to 1"),
    ("spec.training.seed", -1, "spec.training.seed in body should be greater than or equal to 0"),
    ("spec.training.seed", 2**31, "spec.training.seed in body should be less than or equal to 2147483647"),
    ("spec.training.teacher", "base", 'spec.training.teacher: Unsupported value: "base"'),
    ("spec.training.teacher_update_rate", 0, "spec.training.teacher_update_rate in body should be greater than 0"),
    ("spec.training.support", "top_k", 'spec.training.support: Unsupported value: "top_k"'),
    ("spec.training.max_kl", -1, "spec.training.max_kl in body should be greater than or equal to 0"),
    ("spec.training.learningRate", 1, 'unknown field "spec.training.learningRate"'),
    ("spec.servng", {}, 'unknown field "spec.servng"'),
]

NO_NAMES = ("Tone", "tone_2", "team/tone", "tone@7", "-tone", "tone.", "a..b", "tone ")
TOO_LARGE: Object = SAMPLE | {"response": "x" * LARGEST_INLINE_BYTES}
TOO_MANY_IDS: Object = SAMPLE | {"response_token_ids": [1] * (LARGEST_INLINE_BYTES // 2)}

WRONG_JOBS: list[tuple[str, JsonValue, str]] = [
    ("spec.adapterRef", {}, "spec.adapterRef.name: Required value"),
    ("spec.adapterRef.name", "", "spec.adapterRef.name in body should be at least 1 chars long"),
    *(("spec.adapterRef.name", wrong, "spec.adapterRef.name in body should match") for wrong in NO_NAMES),
    ("spec.samples", {"configMapRef": {"name": "Feed_back"}}, "spec.samples.configMapRef.name in body should match"),
    ("spec.samples", {"file": {"claimName": "a b", "path": "s"}}, "spec.samples.file.claimName in body should match"),
    *(
        ("spec.samples.inline.0", SAMPLE | {field: " \n"}, f"spec.samples.inline[0].{field} in body should match")
        for field in ("user_prompt", "response", "feedback")
    ),
    (
        "spec.samples",
        {},
        'spec.samples: Invalid value: "object": exactly one of inline, configMapRef, secretRef and file',
    ),
    (
        "spec.samples.secretRef",
        {"name": "s"},
        'spec.samples: Invalid value: "object": exactly one of inline, configMapRef',
    ),
    ("spec.samples.inline", [], "spec.samples.inline in body should have at least 1 items"),
    ("spec.samples.inline", [TOO_LARGE], "inline samples may have 1000000 bytes: put these on a volume"),
    ("spec.samples.inline", [TOO_MANY_IDS], "inline samples may have 1000000 bytes: put these on a volume"),
    ("spec.samples.inline.0.messages", [{"role": "tool", "content": "x"}], "inline[0].messages[0].role: Unsupported"),
    ("spec.samples.inline.0", without(SAMPLE, "feedback"), "spec.samples.inline[0].feedback: Required value"),
    ("spec.samples.inline.0.feedback", "", "inline[0].feedback: Required value: every sample needs a feedback, or"),
    ("spec.samples.inline.0.feedback", " ", "spec.samples.inline[0].feedback in body should match"),
    ("spec.samples.inline.0.correction", " ", "spec.samples.inline[0].correction in body should match"),
    ("spec.samples.inline.0.id", "two words", "spec.samples.inline[0].id in body should match"),
    ("spec.samples.inline.0.version", -1, "spec.samples.inline[0].version in body should be greater than or equal"),
    ("spec.samples.inline.0", without(SAMPLE, "response"), "spec.samples.inline[0].response: Required value"),
    ("spec.samples.inline.0", without(SAMPLE, "user_prompt"), "spec.samples.inline[0].user_prompt: Required value"),
    ("spec.samples.inline.0.respons", "x", 'unknown field "spec.samples.inline[0].respons"'),
    ("spec.samples.inline.0.prompt_token_ids", ["x"], "spec.samples.inline[0].prompt_token_ids[0]"),
    ("spec.samples.inline.0.response_logprobs", ["NaN"], "spec.samples.inline[0].response_logprobs[0]"),
    ("spec.samples", {"configMapRef": {"name": "c", "key": "a/b"}}, "spec.samples.configMapRef.key in body should"),
    ("spec.samples", {"secretRef": {}}, "spec.samples.secretRef.name: Required value"),
    ("spec.samples", {"file": {"claimName": "c"}}, "spec.samples.file.path: Required value"),
    ("spec.samples", {"file": {"claimName": "c", "path": "../etc/x"}}, "spec.samples.file.path in body should match"),
    ("spec.samples", {"file": {"claimName": "c", "path": "/x"}}, "spec.samples.file.path in body should match"),
    ("spec.samples", {"file": {"claimName": "c", "path": "a\n"}}, "spec.samples.file.path in body should match"),
    ("spec.training.learning_rate", 0, "spec.training.learning_rate in body should be greater than 0"),
    ("spec.training.alpha", 2, "spec.training.alpha in body should be less than or equal to 1"),
    ("spec.training.is_clip", 0, "spec.training.is_clip in body should be greater than or equal to 1"),
    ("spec.training.teacher_top_k", 5, "spec.training.teacher_top_k in body should be greater than or equal to 10"),
    ("spec.training.teacher", "base", 'spec.training.teacher: Unsupported value: "base"'),
    (
        "spec.training.teacher_update_rate",
        2,
        "spec.training.teacher_update_rate in body should be less than or equal",
    ),
    ("spec.training.temperature", 1, 'unknown field "spec.training.temperature"'),
    ("spec.backoffLimit", -1, "spec.backoffLimit in body should be greater than or equal to 0"),
    ("spec.backoffLimit", 21, "spec.backoffLimit in body should be less than or equal to 20"),
    ("spec.activeDeadlineSeconds", 0, "spec.activeDeadlineSeconds in body should be greater than or equal to 1"),
    ("spec.ttlSecondsAfterFinished", -1, "spec.ttlSecondsAfterFinished in body should be greater than or equal"),
    ("spec.completeWhen", "Trained", 'spec.completeWhen: Unsupported value: "Trained"'),
    ("spec.suspend", "yes", 'spec.suspend: Invalid value: "string"'),
]


def case(row: tuple[str, JsonValue, str]) -> str:
    return f"{row[0]}={str(row[1])[:40]}"


def refused(server: ApiServer, manifest: Object, expected: str) -> None:
    answer = server.create(manifest, dry_run=True)
    assert answer.status in (400, 422), f"it was accepted: {answer.status} {answer.message}"
    assert expected in answer.message


@pytest.mark.parametrize("row", WRONG_ADAPTERS, ids=case)
def test_a_wrong_adapter_is_refused_with_a_message_that_names_the_field(
    server: ApiServer, row: tuple[str, JsonValue, str]
) -> None:
    refused(server, changed(ADAPTER, row[0], row[1]), row[2])


@pytest.mark.parametrize("name", ["a" * 51, "1tone", "my.tone"])
def test_a_name_that_no_service_can_have_is_refused_with_a_proxy(server: ApiServer, name: str) -> None:
    said = "with serving.tinkerProxy a Service is named after metadata.name"
    refused(server, changed(changed(ADAPTER, "spec", proxied()), "metadata.name", name), said)
    longest = changed(changed(ADAPTER, "spec", proxied()), "metadata.name", "a" * 50)
    assert server.create(longest, dry_run=True).status == 201


@pytest.mark.parametrize("row", WRONG_JOBS, ids=case)
def test_a_wrong_job_is_refused_with_a_message_that_names_the_field(
    server: ApiServer, row: tuple[str, JsonValue, str]
) -> None:
    refused(server, changed(JOB, row[0], row[1]), row[2])


@pytest.mark.parametrize(
    "field", ["spec", "spec.model", "spec.model.name", "spec.model.source", "spec.serving", "spec.storage"]
)
def test_an_adapter_without_a_field_that_it_needs_is_refused(server: ApiServer, field: str) -> None:
    refused(server, without(ADAPTER, field), f"{field}: Required value")


@pytest.mark.parametrize("field", ["spec", "spec.adapterRef", "spec.samples"])
def test_a_job_without_a_field_that_it_needs_is_refused(server: ApiServer, field: str) -> None:
    refused(server, without(JOB, field), f"{field}: Required value")


VALID = [
    ADAPTER,
    changed(ADAPTER, "spec.loraId", "user123/coder-v1"),
    changed(ADAPTER, "spec.engine", {"local": {}}),
    changed(ADAPTER, "spec.engine", "local"),
    changed(ADAPTER, "spec.storage.path", "team.a/..hidden/x@1"),
    changed(ADAPTER, "spec.storage.path", "team.a/"),
    changed(ADAPTER, "spec.model.source.persistentVolumeClaim.path", "llama-8b/"),
    changed(ADAPTER, "spec.lora", {"rank": 16, "targetModules": "all-linear"}),
    changed(ADAPTER, "spec.lora", {"targetModules": r".*\.self_attn\.(q|v)_proj"}),
    changed(ADAPTER, "spec.lora", {"targetModules": ["q_proj", "mlp.down_proj"]}),
    changed(ADAPTER, "spec.model.source", {"hub": {**HUB, "revision": "main", "cacheClaimName": "hub"}}),
    changed(ADAPTER, "spec.trainer.resources.limits", {"nvidia.com/gpu": 1, "memory": "8Gi"}),
    changed(ADAPTER, "spec.trainer.volumes", [{"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}}]),
    changed(
        ADAPTER,
        "spec.trainer",
        {
            "identity": "Assigned",
            "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "adapters"}}],
            "volumeMounts": [
                {"name": "cache", "mountPath": "/cache"},
                {"name": "cache", "mountPath": "/runs"},
                {"name": "cache", "mountPath": "/var/cache"},
                {"name": "cache", "mountPath": "/dev/shm"},
                {"name": "cache", "mountPath": "/tmp/own", "subPath": "x"},
            ],
        },
    ),
    changed(ADAPTER, "spec.trainer.tolerations", [{"key": "nvidia.com/gpu", "operator": "Exists"}]),
    changed(ADAPTER, "spec.trainer.env", [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
    JOB,
    changed(JOB, "spec.samples", {"configMapRef": {"name": "feedback"}}),
    changed(JOB, "spec.samples", {"secretRef": {"name": "feedback", "key": "today.json"}}),
    changed(JOB, "spec.samples", {"file": {"claimName": "feedback", "path": "2026/today.json"}}),
    changed(JOB, "spec.training", {"learning_rate": 1e-4, "seed": 3}),
    changed(JOB, "spec.samples.inline.0.response_logprobs", [-0.5, -1, 0]),
    changed(JOB, "spec.samples.inline.0", {**without(SAMPLE, "feedback"), "correction": "a better answer"}),
    changed(JOB, "spec.samples.inline.0", {**SAMPLE, "correction": "a", "version": 0, "id": "fb-01k4"}),
]


@pytest.mark.parametrize("manifest", VALID, ids=lambda each: str(each["spec"])[-60:])
def test_what_is_right_is_accepted(server: ApiServer, manifest: Object) -> None:
    answer = server.create(manifest, dry_run=True)
    assert answer.status == 201, answer.message


QUANTITIES: list[JsonValue] = [0.5, 1.5, 2, 0, 16000000000, "4Gi", "500m", "0.5", "1e3", "+2", ".5", "100n", "2."]


@pytest.mark.parametrize("given", QUANTITIES)
def test_a_quantity_is_taken_as_every_pod_takes_it_and_reaches_the_pod_as_text(
    server: ApiServer, given: JsonValue
) -> None:
    written = server.create(
        changed(ADAPTER, "spec.trainer.resources.requests", {"cpu": given, "memory": given}), dry_run=True
    )
    assert written.status == 201, written.message
    assert at(written.body, "spec.trainer.resources.requests") == {"cpu": given, "memory": given}
    requests = TrainerPod.model_validate(at(written.body, "spec.trainer")).resources.requests
    container: JsonValue = {"name": "a", "image": "a", "resources": {"requests": dict(requests)}}
    template: JsonValue = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    job: Object = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "q"}, "spec": {"template": template}}
    answer = server.create(job, dry_run=True)
    assert answer.status == 201, answer.message


def test_fields_of_kubernetes_own_types_are_handed_on_whole(server: ApiServer) -> None:
    volume: JsonValue = {"name": "cache", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}}
    answer = server.create(changed(ADAPTER, "spec.trainer.volumes", [volume]), dry_run=True)
    assert at(answer.body, "spec.trainer.volumes.0") == volume


ADAPTER_DEFAULTS: list[tuple[str, JsonValue]] = [
    ("spec.lora.rank", 32),
    ("spec.lora.alpha", 64),
    ("spec.serving.port", 8000),
    ("spec.serving.handover", "Auto"),
    ("spec.serving.maxSlowdown", 40),
    ("spec.serving.pause", "Keep"),
    ("spec.serving.drainTimeoutSeconds", 30),
    ("spec.serving.maxPauseSeconds", 120),
    ("spec.serving.probe", {"prompt": "Hello", "maxTokens": 8}),
    ("spec.trainer.fsGroup", 65532),
    ("spec.trainer.sameNodeAsServing", False),
    ("spec.training.learning_rate", 3e-5),
    ("spec.training.alpha", 0.5),
    ("spec.training.teacher", "frozen"),
    ("spec.training.max_kl", 1.0),
]


@pytest.mark.parametrize(("path", "expected"), ADAPTER_DEFAULTS)
def test_an_adapter_is_completed_with_defaults(server: ApiServer, path: str, expected: JsonValue) -> None:
    assert at(server.create(ADAPTER, dry_run=True).body, path) == expected


def test_an_inference_proxy_needs_no_settings_and_takes_those_that_the_service_can_follow(server: ApiServer) -> None:
    made = server.create(changed(ADAPTER, "spec", proxied()), dry_run=True)
    assert made.status == 201, made.message
    assert at(made.body, "spec.serving.tinkerProxy") == {"replicas": 1}
    assert at(made.body, "spec.engine.tinker") == {
        "apiKeySecretRef": {"name": "claas-tinker", "key": "api-key"},
        "export": False,
        "stepTimeoutSeconds": 1800,
        "supersededCheckpointTtlSeconds": 2592000,
    }
    settings: JsonValue = {"teacher_top_k": 20, "support": "top_k_renormalised"}
    more = proxied(training=settings, serving__handover="None", serving__port=9000)
    assert server.create(changed(ADAPTER, "spec", more), dry_run=True).status == 201


def test_a_vllm_on_modal_needs_no_settings(server: ApiServer) -> None:
    made = server.create(changed(ADAPTER, "spec", on_modal()), dry_run=True)
    assert made.status == 201, made.message
    assert at(made.body, "spec.serving.modalApp") == {
        "app": "claas-vllm",
        "server": "Vllm",
        "proxyTokenSecretRef": {"name": "claas-modal-proxy"},
    }
    assert at(made.body, "spec.engine.modal") == {
        "app": "claas-trainer",
        "volume": "claas-adapters",
        "tokenSecretRef": {"name": "claas-modal"},
        "keepState": "Volume",
        "stepTimeoutSeconds": 1800,
        "supersededStateTtlSeconds": 604800,
    }
    more = on_modal(serving__handover="None", serving__controlTokenSecretRef={"name": "control"})
    assert server.create(changed(ADAPTER, "spec", more), dry_run=True).status == 201


def test_defaults_fill_what_is_left_out_of_a_map_that_is_there(server: ApiServer) -> None:
    manifest = changed(changed(ADAPTER, "spec.serving.probe.prompt", "Hi"), "spec.training.alpha", 1)
    spec = server.create(manifest, dry_run=True).body["spec"]
    assert at(spec, "serving.probe") == {"prompt": "Hi", "maxTokens": 8}
    assert at(spec, "training.alpha") == 1
    assert at(spec, "training.learning_rate") == 3e-5


def test_a_job_is_completed_with_defaults_and_its_training_stays_unset(server: ApiServer) -> None:
    spec = server.create(JOB, dry_run=True).body["spec"]
    assert (at(spec, "suspend"), at(spec, "backoffLimit"), at(spec, "training")) == (False, 3, {})
    assert at(spec, "completeWhen") == "InService"
    by_key = server.create(changed(JOB, "spec.samples", {"secretRef": {"name": "s"}}), dry_run=True)
    assert at(by_key.body, "spec.samples.secretRef.key") == "samples.json"


@pytest.fixture(scope="module")
def stored(server: ApiServer) -> dict[str, Object]:
    """An adapter and a job that lie in the cluster."""
    adapter = changed(changed(ADAPTER, "metadata.name", "kept"), "spec.loraId", "user123/kept")
    job = changed(JOB, "metadata.name", "kept")
    for manifest in (adapter, job):
        answer = server.create(manifest)
        assert answer.status == 201, answer.message
    return {"adapter": adapter, "job": job}


IMMUTABLE: list[tuple[str, Object, str]] = [
    ("adapter", {"loraId": "user123/other"}, 'spec.loraId: Invalid value: "object": loraId is immutable'),
    ("adapter", {"loraId": None}, 'spec.loraId: Invalid value: "object": loraId is immutable'),
    ("adapter", {"model": {"name": "other"}}, 'spec.model: Invalid value: "object": model is immutable'),
    ("adapter", {"lora": {"rank": 16}}, 'spec.lora: Invalid value: "object": lora is immutable'),
    ("adapter", {"storage": {"claimName": "other"}}, 'spec.storage: Invalid value: "object": storage is immutable'),
    ("adapter", {"storage": {"path": "elsewhere"}}, 'spec.storage: Invalid value: "object": storage is immutable'),
    (
        "adapter",
        {"serving": {"deploymentRef": None, "tinkerProxy": {"replicas": 2}}},
        "serving can't change between deploymentRef, tinkerProxy and modalApp",
    ),
    (
        "adapter",
        {"serving": {"deploymentRef": None, "modalApp": {"app": "claas-vllm"}}},
        "serving can't change between deploymentRef, tinkerProxy and modalApp",
    ),
    ("job", {"adapterRef": {"name": "other"}}, 'spec.adapterRef: Invalid value: "object": adapterRef is immutable'),
    ("job", {"samples": {"inline": [SAMPLE, SAMPLE]}}, 'spec.samples: Invalid value: "object": samples is immutable'),
    ("job", {"samples": {"inline": None, "secretRef": {"name": "s"}}}, "samples is immutable"),
    ("job", {"training": {"alpha": 1}}, 'spec.training: Invalid value: "object": training is immutable'),
]


@pytest.mark.parametrize(("kind", "spec", "expected"), IMMUTABLE)
def test_what_a_version_was_made_from_can_not_be_changed(
    server: ApiServer, stored: dict[str, Object], kind: str, spec: Object, expected: str
) -> None:
    answer = server.merge(stored[kind], {"spec": spec}, dry_run=True)
    assert answer.status == 422
    assert expected in answer.message


MUTABLE: list[tuple[str, Object]] = [
    ("adapter", {"engine": {"tinker": {"export": True, "projectId": "p"}}}),
    ("adapter", {"serving": {"port": 9000, "deploymentRef": {"name": "vllm-2"}, "maxPauseSeconds": 60}}),
    ("adapter", {"training": {"learning_rate": 1e-4}}),
    ("adapter", {"trainer": {"image": "claas-trainer:next", "runtimeClassName": "nvidia"}}),
    ("adapter", {"engine": "local"}),
    ("job", {"suspend": True}),
    ("job", {"completeWhen": "Published"}),
    ("job", {"backoffLimit": 0, "activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 0}),
]


@pytest.mark.parametrize(("kind", "spec"), MUTABLE)
def test_how_it_is_served_and_run_can_be_changed(
    server: ApiServer, stored: dict[str, Object], kind: str, spec: Object
) -> None:
    answer = server.merge(stored[kind], {"spec": spec}, dry_run=True)
    assert answer.status == 200, answer.message


@pytest.mark.parametrize(
    ("name", "before"), [("left-out", None), ("as-text", "all-linear"), ("as-list", ["q_proj"])], ids=str
)
@pytest.mark.parametrize("after", [None, "all-linear", ".*_proj", ["q_proj"], ["q_proj", "v_proj"]], ids=str)
def test_target_modules_are_kept_whether_text_list_or_left_out(
    server: ApiServer, name: str, before: JsonValue, after: JsonValue
) -> None:
    manifest = changed(ADAPTER, "metadata.name", name)
    manifest = changed(manifest, "spec.lora", {"rank": 16} | ({} if before is None else {"targetModules": before}))
    assert server.create(manifest).status in (201, 409)
    answer = server.merge(manifest, {"spec": {"lora": {"targetModules": after}}}, dry_run=True)
    if before == after:
        assert answer.status == 200, answer.message
        lora = at(answer.body, "spec.lora")
        assert isinstance(lora, dict)
        assert lora.get("targetModules") == before
    else:
        assert answer.status == 422
        assert 'spec.lora: Invalid value: "object": lora is immutable' in answer.message


def test_an_adapter_made_without_a_lora_id_can_not_be_given_one(server: ApiServer) -> None:
    plain = changed(ADAPTER, "metadata.name", "plain")
    assert server.create(plain).status == 201
    answer = server.merge(plain, {"spec": {"loraId": "user123/late"}}, dry_run=True)
    assert 'spec.loraId: Invalid value: "object": loraId is immutable' in answer.message


CONDITION: Object = {
    "type": "Ready",
    "status": "True",
    "reason": "Serving",
    "message": "All is well.",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}
VERSION: Object = {"number": 0, "path": "versions/0", "digest": "sha256:0", "created": "2026-01-01T00:00:00Z"}

WRONG_STATUS: list[tuple[Object, str]] = [
    (
        {"conditions": [changed(CONDITION, "status", "Maybe")]},
        'status.conditions[0].status: Unsupported value: "Maybe"',
    ),
    (
        {"conditions": [changed(CONDITION, "reason", "two words")]},
        'status.conditions[0].reason: Invalid value: "two words"',
    ),
    ({"conditions": [without(CONDITION, "message")]}, "status.conditions[0].message: Required value"),
    ({"conditions": [CONDITION, CONDITION]}, 'status.conditions[1]: Duplicate value: {"type":"Ready"}'),
    (
        {"versions": [{**VERSION, "number": number} for number in range(21)]},
        "status.versions: Too many: 21: must have",
    ),
    ({"replicas": [{"pod": "a", "state": "Dreaming"}]}, 'status.replicas[0].state: Unsupported value: "Dreaming"'),
]


@pytest.mark.parametrize(("status", "expected"), WRONG_STATUS)
def test_a_wrong_status_is_refused(
    server: ApiServer, stored: dict[str, Object], status: Object, expected: str
) -> None:
    answer = server.merge(stored["adapter"], {"status": status}, subresource="/status", dry_run=True)
    assert answer.status == 422
    assert expected in answer.message


def test_status_is_written_by_its_own_subresource_only(server: ApiServer, stored: dict[str, Object]) -> None:
    ignored = server.merge(stored["adapter"], {"status": {"servedVersion": 9}}, dry_run=True)
    assert "servedVersion" not in str(ignored.body.get("status"))
    spec_ignored = server.merge(
        stored["adapter"],
        {"spec": {"serving": {"port": 9000}}, "status": {"servedVersion": 7}},
        subresource="/status",
        dry_run=True,
    )
    assert at(spec_ignored.body, "status.servedVersion") == 7
    assert at(spec_ignored.body, "spec.serving.port") == 8000


def test_items_of_lists_stay_as_they_were_sent_so_that_git_and_cluster_do_not_differ(server: ApiServer) -> None:
    samples: list[JsonValue] = [SAMPLE, SAMPLE | {"messages": [{"role": "user", "content": "Hi"}]}]
    answer = server.create(changed(JOB, "spec.samples.inline", samples), dry_run=True)
    assert at(answer.body, "spec.samples.inline") == samples


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("one-large", [SAMPLE | {"response": "x" * 999_900}]),
        ("many-small", [{"user_prompt": "q", "response": "r", "feedback": "f"}] * 20_000),
        ("other-scripts", [SAMPLE | {"response": "\u7b54" * 333_000}]),
        ("ids", [SAMPLE | {"response_token_ids": [7] * 499_000}]),
    ],
)
def test_inline_samples_of_the_promised_size_are_stored_and_leave_room_for_the_status(
    server: ApiServer, name: str, samples: list[JsonValue]
) -> None:
    job = changed(changed(JOB, "metadata.name", name), "spec.samples.inline", samples)
    assert server.create(job).status == 201
    condition: Object = {
        "status": "True",
        "reason": "R",
        "message": "m" * 4000,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    conditions: list[JsonValue] = [condition | {"type": f"T{number}"} for number in range(6)]
    answer = server.merge(job, {"status": {"conditions": conditions}}, subresource="/status")
    assert answer.status == 200, answer.message


@pytest.mark.parametrize("path", ["2026/july 1.json", "Rückmeldungen/März.jsonl", "反馈/样本.json"])
def test_a_samples_file_may_have_spaces_and_any_script(server: ApiServer, path: str) -> None:
    job = changed(JOB, "spec.samples", {"file": {"claimName": "c", "path": path}})
    assert server.create(job, dry_run=True).status == 201
