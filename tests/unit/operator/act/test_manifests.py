"""The trainer's objects: restricted pods, what the adapter passes on, samples in one place."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import PurePosixPath
from typing import cast

import pytest
from pydantic import JsonValue

from claas_contract.input import AdapterIdentity, ModelLocation, ServerTrust, TrainerInput
from claas_contract.outcome import TrainerCommand
from claas_contract.places import (
    CONTROL_TOKEN_FILE,
    INPUT_DIRECTORY,
    MODAL_TOKEN_DIRECTORY,
    MODEL_DIRECTORY,
    SAMPLES_DIRECTORY,
    SERVING_CA_FILE,
    STORAGE_DIRECTORY,
    TINKER_KEY_FILE,
)
from claas_crds.v1alpha1.distill_job import LARGEST_INLINE_BYTES, FileReference, KeyReference, SamplesSource
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.serving import Serving
from claas_crds.v1alpha1.trainer_pod import Identity, TrainerPod
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_kube.objects.meta import LabelSelector, Manifest
from claas_kube.objects.resources import AdapterObject
from claas_operator.act.manifests import (
    Owner,
    child_metadata,
    common_mounts,
    companion_config_map,
    input_secret,
    serving_mounts,
    storage_mounts,
    trainer_job,
)
from claas_operator.act.sample_mounts import samples_mounts
from claas_operator.act.trainer_input import init_input, server_trust
from claas_operator.plan.samples import input_error, samples_document, samples_file
from claas_operator.settings import Settings
from tests.builders.world import adapter, metadata
from tests.unit.operator.plan.adapter.test_proxy import proxied

SETTINGS = Settings.from_environment({"CLAAS_TRAINER_IMAGE": "trainer:1"})
TEXT = "a user's text"
INLINE = SamplesSource(inline=[DistillBatchItem(user_prompt=TEXT, response=TEXT, feedback=TEXT)])
SERVING: dict[str, JsonValue] = {
    "controlTokenSecretRef": {"name": "control", "key": "t"},
    "apiKeySecretRef": {"name": "api"},
}
OWNER = Owner("DistillJob", metadata("step"))


def at(data: JsonValue, *path: str | int) -> JsonValue:
    for part in path:
        data = cast("list[JsonValue]", data)[part] if isinstance(part, int) else cast(Manifest, data)[part]
    return data


def made(
    of: AdapterObject | None = None, samples: SamplesSource = INLINE, serving: LabelSelector | None = None
) -> Manifest:
    """The batch Job of a step."""
    found = of or adapter(serving=SERVING)
    mounts = [*common_mounts(found, SETTINGS, "step-1"), *serving_mounts(found), *samples_mounts(samples)]
    metadata = child_metadata("step-1", OWNER, found.metadata)
    return trainer_job(TrainerCommand.RUN, metadata, found, SETTINGS, mounts, serving)


def pod_spec(job: Manifest) -> Manifest:
    return cast(Manifest, at(job, "spec", "template", "spec"))


def container(job: Manifest) -> Manifest:
    return cast(Manifest, at(pod_spec(job), "containers", 0))


def with_trainer(**fields: JsonValue) -> AdapterObject:
    return adapter(trainer=TrainerPod.model_validate(fields))


def test_the_pod_meets_the_restricted_standard() -> None:
    job = made()
    spec = pod_spec(job)
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in spec
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    security = cast(Manifest, spec["securityContext"])
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] != 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(job)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_kubernetes_never_repeats_a_step_by_itself() -> None:
    job = made()
    assert at(job, "spec", "backoffLimit") == 0
    assert pod_spec(job)["restartPolicy"] == "Never"
    assert at(job, "spec", "podReplacementPolicy") == "Failed"


def test_children_belong_to_their_job_and_name_it() -> None:
    for data in (at(made(), "metadata"), at(made(), "spec", "template", "metadata")):
        assert at(data, "labels", "claas.dev/job-uid") == "uid-of-step"
        assert at(data, "labels", "app.kubernetes.io/managed-by") == "claas-operator"
        assert at(data, "annotations", "claas.dev/owner-name") == "step"
    (owner,) = cast("list[JsonValue]", at(made(), "metadata", "ownerReferences"))
    assert (at(owner, "uid"), at(owner, "controller")) == ("uid-of-step", True)


def test_the_initial_version_belongs_to_the_adapter_and_is_no_jobs() -> None:
    found = adapter()
    data = child_metadata("tone-init", Owner("LoraAdapter", found.metadata), found.metadata)
    assert at(data, "ownerReferences", 0, "kind") == "LoraAdapter"
    assert "claas.dev/job-uid" not in cast(Manifest, data["labels"])


@pytest.mark.parametrize(
    ("path", "read_only"),
    [
        (INPUT_DIRECTORY, True),
        (STORAGE_DIRECTORY, False),
        (MODEL_DIRECTORY, True),
        ("/tmp", False),
        (CONTROL_TOKEN_FILE.rsplit("/", 1)[0], True),
    ],
)
def test_a_folder_is_mounted_for_reading_unless_it_must_be_written(path: str, read_only: bool) -> None:
    mounts = cast("list[Manifest]", container(made())["volumeMounts"])
    (found,) = [mount for mount in mounts if mount["mountPath"] == path]
    assert found.get("readOnly", False) is read_only
    volumes = {volume["name"] for volume in cast("list[Manifest]", pod_spec(made())["volumes"])}
    assert found["name"] in volumes


PASSED_ON: list[tuple[str, JsonValue, tuple[str | int, ...], JsonValue]] = [
    ("nodeSelector", {"gpu": "h200"}, ("nodeSelector",), {"gpu": "h200"}),
    ("runtimeClassName", "nvidia", ("runtimeClassName",), "nvidia"),
    ("tolerations", [{"key": "gpu", "operator": "Exists"}], ("tolerations",), [{"key": "gpu", "operator": "Exists"}]),
    ("imagePullSecrets", [{"name": "pull"}], ("imagePullSecrets",), [{"name": "pull"}]),
    ("runAsUser", 1000, ("securityContext", "runAsUser"), 1000),
    ("fsGroup", 2000, ("securityContext", "fsGroup"), 2000),
    (
        "resourceClaims",
        [{"name": "gpu", "resourceClaimName": "shared-gpu"}],
        ("resourceClaims",),
        [{"name": "gpu", "resourceClaimName": "shared-gpu"}],
    ),
    (
        "resourceClaims",
        [{"name": "gpu", "resourceClaimName": "shared-gpu", "request": "one"}],
        ("containers", 0, "resources", "claims"),
        [{"name": "gpu", "request": "one"}],
    ),
    (
        "resources",
        {"limits": {"memory": "4Gi", "cpu": 2}, "requests": {"memory": "1Gi"}},
        ("containers", 0, "resources"),
        {"limits": {"memory": "4Gi", "cpu": "2"}, "requests": {"memory": "1Gi"}},
    ),
    (
        "resources",
        {"requests": {"cpu": 0.5, "memory": 16000000000, "a": 1e-07}, "limits": {"cpu": 1.5, "memory": 4e9}},
        ("containers", 0, "resources"),
        {
            "requests": {"cpu": "0.5", "memory": "16000000000", "a": "0.0000001"},
            "limits": {"cpu": "1.5", "memory": "4000000000"},
        },
    ),
    ("runAsUser", 1000, ("securityContext", "runAsGroup"), 1000),
    ("runAsGroup", 0, ("securityContext", "runAsGroup"), 0),
    ("runAsGroup", 7, ("securityContext", "runAsUser"), 65532),
    ("image", "mine:2", ("containers", 0, "image"), "mine:2"),
    ("imagePullPolicy", "Always", ("containers", 0, "imagePullPolicy"), "Always"),
]


@pytest.mark.parametrize(
    ("field", "value", "path", "expected"), PASSED_ON, ids=[f"{row[0]}-at-{row[2][-1]}" for row in PASSED_ON]
)
def test_a_setting_of_the_trainer_reaches_its_pod(
    field: str, value: JsonValue, path: tuple[str | int, ...], expected: JsonValue
) -> None:
    assert at(pod_spec(made(with_trainer(**{field: value}))), *path) == expected


def test_env_volumes_labels_and_annotations_come_beside_the_operators_own() -> None:
    source: JsonValue = {"secretKeyRef": {"name": "s", "key": "k"}}
    job = made(
        with_trainer(
            env=[{"name": "A", "valueFrom": source}],
            volumes=[{"name": "cache", "hostPath": {"path": "/cache"}}],
            volumeMounts=[{"name": "cache", "mountPath": "/cache", "readOnly": True}],
            labels={"team": "a", "claas.dev/job-uid": "forged"},
            annotations={"note": "b"},
        )
    )
    assert {"name": "A", "valueFrom": source} in cast("list[JsonValue]", container(job)["env"])
    assert {"name": "cache", "hostPath": {"path": "/cache"}} in cast("list[JsonValue]", pod_spec(job)["volumes"])
    mounts = cast("list[JsonValue]", container(job)["volumeMounts"])
    assert {"name": "cache", "mountPath": "/cache", "readOnly": True} in mounts
    labels = at(job, "spec", "template", "metadata", "labels")
    assert (at(labels, "team"), at(labels, "claas.dev/job-uid")) == ("a", "uid-of-step")
    assert at(job, "spec", "template", "metadata", "annotations", "note") == "b"


SELECTORS: list[JsonValue] = [
    {"matchLabels": {"app": "vllm"}},
    {"matchExpressions": [{"key": "app", "operator": "In", "values": ["vllm", "vllm-8b"]}]},
    {
        "matchLabels": {"app": "vllm"},
        "matchExpressions": [
            {"key": "track", "operator": "NotIn", "values": ["canary"]},
            {"key": "gpu", "operator": "Exists"},
        ],
    },
]


@pytest.mark.parametrize("selector", SELECTORS, ids=["labels", "expressions-alone", "both"])
def test_the_trainer_follows_vllms_node_by_the_whole_selector_of_its_deployment(selector: JsonValue) -> None:
    spec = pod_spec(made(with_trainer(sameNodeAsServing=True), serving=LabelSelector.model_validate(selector)))
    (term,) = cast(
        "list[JsonValue]", at(spec, "affinity", "podAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    )
    assert term == {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}


@pytest.mark.parametrize("same_node", [True, False])
def test_the_trainer_runs_anywhere_unless_it_is_told_where(same_node: bool) -> None:
    selector = None if same_node else LabelSelector(match_labels={"app": "vllm"})
    assert "affinity" not in pod_spec(made(with_trainer(sameNodeAsServing=same_node), serving=selector))


def test_the_trainer_of_an_adapter_with_a_proxy_goes_to_its_node_where_it_can() -> None:
    """A ReadWriteOnce volume is on that node alone."""
    job = made(proxied(), serving=LabelSelector(match_labels={"app": "proxy"}))
    affinity = cast(Manifest, at(pod_spec(job), "affinity", "podAffinity"))
    assert list(affinity) == ["preferredDuringSchedulingIgnoredDuringExecution"]


OPENSHIFT = Settings.from_environment(
    {"CLAAS_TRAINER_IMAGE": "trainer:1", "CLAAS_TRAINER_IDENTITY": Identity.ASSIGNED.value}
)
IDENTITIES: list[tuple[str, Manifest, Settings, Manifest]] = [
    (
        "the operator's default",
        {},
        SETTINGS,
        {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532, "fsGroupChangePolicy": "OnRootMismatch"},
    ),
    ("left to the cluster by the adapter", {"identity": "Assigned"}, SETTINGS, {}),
    ("left to the cluster by the operator", {}, OPENSHIFT, {}),
    (
        "left to the cluster but for a user",
        {"runAsUser": 1001, "identity": "Assigned"},
        SETTINGS,
        {"runAsUser": 1001},
    ),
    ("left to the cluster but for a group", {"runAsGroup": 0}, OPENSHIFT, {"runAsGroup": 0}),
    (
        "fixed by the adapter",
        {"identity": "Fixed", "fsGroup": 7},
        OPENSHIFT,
        {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 7, "fsGroupChangePolicy": "OnRootMismatch"},
    ),
]


@pytest.mark.parametrize(
    ("trainer", "by", "expected"), [row[1:] for row in IDENTITIES], ids=[row[0] for row in IDENTITIES]
)
def test_user_and_groups_are(trainer: Manifest, by: Settings, expected: Manifest) -> None:
    found = with_trainer(**trainer)
    job = trainer_job(TrainerCommand.RUN, child_metadata("step-1", OWNER, found.metadata), found, by, [], None)
    always = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod_spec(job)["securityContext"] == {**always, **expected}


def test_the_engine_is_the_adapters_or_else_the_operators() -> None:
    env = cast("list[Manifest]", container(made())["env"])
    assert {"name": "CLAAS_DISTILL_EXECUTION_MODE", "value": EngineName.LOCAL} in env


def test_samples_stand_in_the_input_secret_and_nowhere_else() -> None:
    found = adapter(serving=SERVING)
    document = TrainerInput(
        adapter=AdapterIdentity(namespace="team", name="tone", uid="u", lora_id="team/tone"),
        engine=EngineSpec.of(EngineName.LOCAL),
        model=ModelLocation(path="/model"),
        lora=found.spec.lora,
        storage_path=found.storage_path,
        samples_file=samples_file(INLINE),
    )
    secret = input_secret(child_metadata("step-1", OWNER, found.metadata), document, samples_document(INLINE))
    files = {name: base64.b64decode(str(value)).decode() for name, value in cast(Manifest, secret["data"]).items()}
    assert TEXT in files["samples.json"]
    assert TEXT not in files["input.json"]
    assert TrainerInput.model_validate_json(files["input.json"]) == document
    outside = {key: value for key, value in secret.items() if key != "data"}
    assert TEXT not in json.dumps([outside, made()])


REFERENCES: list[tuple[SamplesSource, str, JsonValue]] = [
    (
        SamplesSource(config_map_ref=KeyReference(name="c", key="k.json")),
        f"{SAMPLES_DIRECTORY}/samples.json",
        {"name": "claas-samples", "configMap": {"name": "c", "items": [{"key": "k.json", "path": "samples.json"}]}},
    ),
    (
        SamplesSource(secret_ref=KeyReference(name="s")),
        f"{SAMPLES_DIRECTORY}/samples.json",
        {
            "name": "claas-samples",
            "secret": {"secretName": "s", "items": [{"key": "samples.json", "path": "samples.json"}]},
        },
    ),
    (
        SamplesSource(file=FileReference(claim_name="v", path="a/b.json")),
        f"{SAMPLES_DIRECTORY}/a/b.json",
        {"name": "claas-samples", "persistentVolumeClaim": {"claimName": "v", "readOnly": True}},
    ),
]


@pytest.mark.parametrize(("source", "file", "volume"), REFERENCES, ids=["a-config-map", "a-secret", "a-volume"])
def test_samples_that_lie_elsewhere_are_mounted_from(source: SamplesSource, file: str, volume: JsonValue) -> None:
    assert samples_document(source) is None
    assert samples_file(source) == file
    (mount,) = samples_mounts(source)
    assert (mount.volume, mount.path, mount.read_only) == (volume, SAMPLES_DIRECTORY, True)


def test_samples_too_large_for_a_secret_are_refused_without_quoting_them() -> None:
    assert input_error(INLINE) is None
    large = DistillBatchItem(user_prompt=TEXT * (LARGEST_INLINE_BYTES // len(TEXT)), response="r", feedback="f")
    message = input_error(SamplesSource(inline=[large]))
    assert message is not None
    assert message.startswith("spec.samples.inline: ")
    assert TEXT not in message


def test_a_hub_model_brings_its_cache_and_token() -> None:
    found = adapter()
    hub: Manifest = {"repository": "a/b", "cacheClaimName": "cache", "tokenSecretRef": {"name": "hub"}}
    spec = found.spec.model_validate(
        {**found.spec.model_dump(by_alias=True), "model": {"name": "base", "source": {"hub": hub}}}
    )
    mounts = common_mounts(found.model_copy(update={"spec": spec}), SETTINGS, "step-1")
    assert {mount.path: mount.read_only for mount in mounts if "hub" in mount.path} == {
        "/var/lib/claas/hub-cache": False,
        "/var/run/claas/hub-token": True,
    }


def test_the_companions_config_map_carries_each_file_under_its_name() -> None:
    manifest = companion_config_map("team", {"__init__.py": "the source"})
    assert at(manifest, "data", "__init__.py") == "the source"


@pytest.mark.parametrize(
    ("tls", "source"),
    [
        (
            {"caSecretRef": {"name": "tls"}},
            {"secret": {"secretName": "tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        ),
        (
            {"caConfigMapRef": {"name": "tls", "key": "root.pem"}, "serverName": "vllm.team.svc"},
            {"configMap": {"name": "tls", "items": [{"key": "root.pem", "path": "ca.crt"}]}},
        ),
    ],
)
def test_the_trainer_is_given_the_ca_of_vllms_certificate(tls: Manifest, source: Manifest) -> None:
    found = adapter(serving={**SERVING, "scheme": "https", "tls": tls})
    job = made(found)
    volumes = cast("list[Manifest]", pod_spec(job)["volumes"])
    mounts = cast("list[Manifest]", container(job)["volumeMounts"])
    assert {"name": "claas-serving-ca", **source} in volumes
    folder = str(PurePosixPath(SERVING_CA_FILE).parent)
    assert {"name": "claas-serving-ca", "mountPath": folder, "readOnly": True} in mounts
    trust = server_trust(found.spec.serving.tls)
    assert (trust.has_ca, trust.server_name) == (True, tls.get("serverName"))


def test_without_tls_settings_public_authorities_are_trusted_and_nothing_is_mounted() -> None:
    volumes = cast("list[Manifest]", pod_spec(made(adapter(serving={**SERVING, "scheme": "https"})))["volumes"])
    assert "claas-serving-ca" not in {volume["name"] for volume in volumes}
    assert server_trust(None) == ServerTrust()


REMOTE = Settings.from_environment({"CLAAS_TRAINER_IMAGE": "trainer:1", "CLAAS_REMOTE_TRAINER_IMAGE": "slim:1"})
BY_TINKER = EngineSpec.model_validate({"tinker": {"apiKeySecretRef": {"name": "mine", "key": "k"}}})
BY_MODAL = EngineSpec.model_validate({"modal": {"tokenSecretRef": {"name": "mine"}}})


@pytest.mark.parametrize("command", [TrainerCommand.INIT, TrainerCommand.RUN])
@pytest.mark.parametrize(
    ("engine", "folder", "files"),
    [
        (BY_TINKER, TINKER_KEY_FILE.rpartition("/")[0], {"k": "api-key"}),
        (BY_MODAL, MODAL_TOKEN_DIRECTORY, {"token-id": "token-id", "token-secret": "token-secret"}),
    ],
    ids=["tinker", "modal"],
)
def test_a_trainer_of_a_service_mounts_what_opens_it_and_asks_for_no_device(
    engine: EngineSpec, folder: str, files: dict[str, str], command: TrainerCommand
) -> None:
    devices: Manifest = {
        "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "4Gi"}},
        "resourceClaims": [{"name": "gpu", "resourceClaimName": "shared"}],
        "sameNodeAsServing": True,
    }
    found = adapter(engine=engine, trainer=TrainerPod.model_validate(devices))
    mounts = common_mounts(found, REMOTE, "step-1")
    beside = LabelSelector(match_labels={"app": "vllm"})
    job = trainer_job(command, child_metadata("step-1", OWNER, found.metadata), found, REMOTE, mounts, beside)
    volumes = cast("list[Manifest]", pod_spec(job)["volumes"])
    items: list[JsonValue] = [{"key": key, "path": file} for key, file in files.items()]
    assert {"name": "claas-service-key", "secret": {"secretName": "mine", "items": items}} in volumes
    mounted = cast("list[Manifest]", container(job)["volumeMounts"])
    assert {"name": "claas-service-key", "mountPath": folder, "readOnly": True} in mounted
    assert container(job)["image"] == "slim:1"
    assert container(job)["resources"] == {"limits": {"memory": "4Gi"}}
    assert "resourceClaims" not in pod_spec(job)
    # A volume may be bound to one node; nothing else ties the trainer to serving.
    assert list(cast(Manifest, at(pod_spec(job), "affinity", "podAffinity"))) == [
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    assert at(job, "spec", "template", "metadata", "labels", "claas.dev/engine") == engine.name


@pytest.mark.parametrize(
    ("engine", "address"), [(BY_MODAL, "http://modal.example:8000"), (BY_TINKER, None)], ids=["modal", "tinker"]
)
def test_a_trainer_of_modal_asks_the_api_that_the_operator_asks(engine: EngineSpec, address: str | None) -> None:
    settings = replace(REMOTE, modal_server_url="http://modal.example:8000")
    found = adapter(engine=engine)

    def told(settings: Settings) -> str | None:
        metadata = child_metadata("step-1", OWNER, found.metadata)
        job = trainer_job(TrainerCommand.RUN, metadata, found, settings, [], None)
        variables = {at(each, "name"): each for each in cast("list[Manifest]", container(job)["env"])}
        return cast(str, variables["MODAL_SERVER_URL"]["value"]) if "MODAL_SERVER_URL" in variables else None

    assert told(settings) == address
    assert told(REMOTE) is None


def test_a_trainer_whose_servers_are_outside_the_cluster_gets_nothing_to_tell_them_with() -> None:
    serving: dict[str, JsonValue] = {"modalApp": {}, "controlTokenSecretRef": {"name": "control"}}
    found = adapter(engine=BY_MODAL)
    found = found.model_copy(
        update={"spec": found.spec.model_copy(update={"serving": Serving.model_validate(serving)})}
    )
    assert serving_mounts(found) == []


def test_trainers_of_the_local_engine_see_no_key_of_a_service() -> None:
    found = adapter()
    job = trainer_job(
        TrainerCommand.RUN,
        child_metadata("step-1", OWNER, found.metadata),
        found,
        REMOTE,
        common_mounts(found, REMOTE, "step-1"),
        None,
    )
    assert "claas-service-key" not in json.dumps(job)
    assert container(job)["image"] == "trainer:1"
    assert at(job, "spec", "template", "metadata", "labels", "claas.dev/engine") == "local"


def test_looking_on_the_volume_needs_no_key() -> None:
    found = adapter(engine=BY_TINKER)
    mounts = storage_mounts(found, "step-1")
    job = trainer_job(
        TrainerCommand.RECOVER, child_metadata("step-1", OWNER, found.metadata), found, REMOTE, mounts, None
    )
    assert "mine" not in json.dumps(job)


@pytest.mark.parametrize(
    ("source", "engine", "name"),
    [
        ({"persistentVolumeClaim": {"claimName": "models"}}, {"tinker": {}}, "Qwen/Qwen3-8B"),
        ({"hub": {"repository": "a/b"}}, {"tinker": {}}, "a/b"),
        ({"hub": {"repository": "a/b"}}, None, "a/b"),
        ({"hub": {"repository": "a/b"}}, {"tinker": {"baseModel": "c/d"}}, "c/d"),
    ],
)
def test_the_trainer_is_told_the_services_name_of_the_base_model(
    source: Manifest, engine: Manifest | None, name: str
) -> None:
    found = adapter()
    model: Manifest = {"name": "Qwen/Qwen3-8B", "source": source}
    spec = {**found.spec.model_dump(by_alias=True), "model": model, "engine": engine}
    settings = replace(SETTINGS, engine=EngineName.TINKER)
    told = init_input(found.model_copy(update={"spec": found.spec.model_validate(spec)}), settings).engine.tinker
    assert told is not None
    assert (told.base_model, told.api_key_secret_ref.name) == (name, "claas-tinker")
