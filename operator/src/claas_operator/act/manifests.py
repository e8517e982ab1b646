"""Manifests of the objects that the operator creates."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from claas_contract import places
from claas_contract.input import TrainerInput
from claas_contract.outcome import TrainerCommand
from claas_crds import API_VERSION
from claas_crds.v1alpha1.lora_adapter import KIND as ADAPTER_KIND
from claas_crds.v1alpha1.trainer_pod import Identity, TrainerPod
from claas_kube.objects.meta import LabelSelector, Manifest, ObjectMeta
from claas_kube.objects.resources import AdapterObject
from claas_operator.act.pod_volumes import (
    Mount,
    certificates_mount,
    claim_mount,
    pod_volumes,
    secret_files_mount,
    secret_mount,
    wire,
)
from claas_operator.plan import naming
from claas_operator.plan.engine.choice import computes_elsewhere, engine_of, service_secret
from claas_operator.settings import Settings

TERMINATION_GRACE_SECONDS = 30
TRAINER_UID = 65532
RESTRICTED: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""core/v1 SecurityContext of our containers."""


@dataclass(frozen=True)
class Owner:
    """The owner of a child, which is deleted together with it."""

    kind: str
    metadata: ObjectMeta

    def reference(self) -> Manifest:
        """metav1.OwnerReference."""
        return {
            "apiVersion": API_VERSION,
            "kind": self.kind,
            "name": self.metadata.name,
            "uid": self.metadata.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


def child_metadata(
    name: str, owner: Owner, adapter: ObjectMeta, command: TrainerCommand = TrainerCommand.RUN
) -> Manifest:
    """Metadata of a child: its owner, and labels to find it."""
    labels: dict[str, JsonValue] = {
        **naming.TRAINER_LABELS,
        naming.ADAPTER_UID_LABEL: adapter.uid,
        naming.OWNER_KIND_LABEL: owner.kind,
    }
    if owner.kind != ADAPTER_KIND and command is TrainerCommand.RUN:
        labels[naming.JOB_UID_LABEL] = owner.metadata.uid
    return {
        "name": name,
        "namespace": owner.metadata.namespace,
        "labels": labels,
        "annotations": {
            naming.OWNER_NAME_ANNOTATION: owner.metadata.name,
            naming.OWNER_GENERATION_ANNOTATION: str(owner.metadata.generation),
        },
        "ownerReferences": [owner.reference()],
    }


def input_secret(metadata: Manifest, document: TrainerInput, samples: str | None) -> Manifest:
    """The Secret with an attempt's input, and with samples that are inline."""
    files = {"input.json": document.model_dump_json(exclude_none=True)}
    if samples is not None:
        files["samples.json"] = samples
    data: Manifest = {name: base64.b64encode(text.encode()).decode() for name, text in files.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}


def storage_mounts(adapter: AdapterObject, input_name: str) -> list[Mount]:
    """Volumes of every trainer pod: input, the adapter's volume, a scratch folder."""
    return [
        Mount({"name": "claas-input", "secret": {"secretName": input_name}}, places.INPUT_DIRECTORY),
        claim_mount("claas-storage", adapter.spec.storage.claim_name, places.STORAGE_DIRECTORY, read_only=False),
        Mount({"name": "claas-scratch", "emptyDir": {}}, places.SCRATCH_DIRECTORY, read_only=False),
    ]


def common_mounts(adapter: AdapterObject, settings: Settings, input_name: str) -> list[Mount]:
    """Volumes of a pod that makes a version: those, the model, and the key of the engine's service."""
    return [*storage_mounts(adapter, input_name), *model_mounts(adapter), *key_mounts(adapter, settings)]


def model_mounts(adapter: AdapterObject) -> list[Mount]:
    """Volumes with the base model's files, or to fetch them with."""
    mounts = []
    source = adapter.spec.model.source
    if source.persistent_volume_claim is not None:
        claim = source.persistent_volume_claim.claim_name
        mounts.append(claim_mount("claas-model", claim, places.MODEL_DIRECTORY, read_only=True))
    if source.hub is not None and source.hub.cache_claim_name is not None:
        cache = source.hub.cache_claim_name
        mounts.append(claim_mount("claas-hub-cache", cache, places.HUB_CACHE_DIRECTORY, read_only=False))
    if source.hub is not None and source.hub.token_secret_ref is not None:
        reference = source.hub.token_secret_ref
        mounts.append(secret_mount("claas-hub-token", reference, places.HUB_TOKEN_FILE))
    return mounts


def key_mounts(adapter: AdapterObject, settings: Settings) -> list[Mount]:
    """What opens the service that computes the adapter's steps, if one does."""
    secret = service_secret(adapter, settings.engine)
    return [] if secret is None else [secret_files_mount("claas-service-key", secret.name, secret.files)]


def serving_mounts(adapter: AdapterObject) -> list[Mount]:
    """Volumes of a pod that pauses and swaps: control token, API key, and CA. Servers outside the cluster are told
    by the operator."""
    serving = adapter.spec.serving
    if adapter.outside_cluster:
        return []
    mounts = []
    if adapter.control_token is not None:
        reference = adapter.control_token
        mounts.append(secret_mount("claas-control", reference, places.CONTROL_TOKEN_FILE))
    if serving.api_key_secret_ref is not None:
        reference = serving.api_key_secret_ref
        mounts.append(secret_mount("claas-api-key", reference, places.API_KEY_FILE))
    if serving.tls is not None and serving.tls.certificates is not None:
        mounts.append(certificates_mount(serving.tls, serving.tls.certificates))
    return mounts


def trainer_job(
    command: TrainerCommand,
    metadata: Manifest,
    adapter: AdapterObject,
    settings: Settings,
    mounts: list[Mount],
    serving: LabelSelector | None,
) -> Manifest:
    """The batch Job of one attempt; Kubernetes never retries it."""
    if command is TrainerCommand.RECOVER or computes_elsewhere(adapter, settings.engine):
        adapter = _without_devices(adapter)
    # Queues such as Kueue look for their labels on the Job.
    marked = _marked(metadata, adapter, settings)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**metadata, **marked},
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            # A terminating trainer must be gone before Kubernetes may create another.
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": marked,
                "spec": _pod_spec(command, adapter, settings, mounts, serving),
            },
        },
    }


def _without_devices(adapter: AdapterObject) -> AdapterObject:
    """The adapter with a trainer that requests no GPU."""
    trainer = adapter.spec.trainer
    resources = trainer.resources
    plain = resources.model_copy(
        update={
            "limits": {name: value for name, value in resources.limits.items() if "/" not in name},
            "requests": {name: value for name, value in resources.requests.items() if "/" not in name},
        }
    )
    modest = trainer.model_copy(update={"resources": plain, "resource_claims": []})
    return adapter.model_copy(update={"spec": adapter.spec.model_copy(update={"trainer": modest})})


def _marked(metadata: Manifest, adapter: AdapterObject, settings: Settings) -> Manifest:
    """Labels and annotations of a batch Job and of its pod: the user's, overridden by the operator's."""
    labels = metadata["labels"]
    annotations = metadata["annotations"]
    assert isinstance(labels, dict)
    assert isinstance(annotations, dict)
    trainer = adapter.spec.trainer
    engine = {naming.ENGINE_LABEL: engine_of(adapter, settings.engine).name}
    return {"labels": {**trainer.labels, **labels, **engine}, "annotations": {**trainer.annotations, **annotations}}


def _pod_spec(
    command: TrainerCommand,
    adapter: AdapterObject,
    settings: Settings,
    mounts: list[Mount],
    serving: LabelSelector | None,
) -> Manifest:
    trainer = adapter.spec.trainer
    volumes, container_mounts = pod_volumes(mounts, trainer)
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": TERMINATION_GRACE_SECONDS,
        "securityContext": pod_security(trainer, trainer.identity or settings.trainer_identity),
        "containers": [_container(command, adapter, settings, container_mounts)],
        "volumes": volumes,
    }
    if trainer.image_pull_secrets:
        spec["imagePullSecrets"] = [dict(secret) for secret in trainer.image_pull_secrets]
    if trainer.node_selector:
        spec["nodeSelector"] = dict(trainer.node_selector)
    if trainer.tolerations:
        spec["tolerations"] = [wire(toleration) for toleration in trainer.tolerations]
    if trainer.runtime_class_name is not None:
        spec["runtimeClassName"] = trainer.runtime_class_name
    if trainer.resource_claims:
        spec["resourceClaims"] = [
            {"name": claim.name, "resourceClaimName": claim.resource_claim_name} for claim in trainer.resource_claims
        ]
    # Beside a proxy in any case: the volume may be on its node alone.
    if (trainer.same_node_as_serving or adapter.spec.serving.tinker_proxy is not None) and serving is not None:
        shares_gpu = command is TrainerCommand.RUN and not computes_elsewhere(adapter, settings.engine)
        spec["affinity"] = {"podAffinity": beside(serving, required=shares_gpu)}
    return spec


def pod_security(trainer: TrainerPod, identity: Identity) -> Manifest:
    """core/v1 PodSecurityContext: the restricted Pod Security Standard, and the pod's user and groups."""
    security: Manifest = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if identity is Identity.FIXED:
        user = trainer.run_as_user or TRAINER_UID
        security |= {"runAsUser": user, "runAsGroup": user}
        if trainer.fs_group is not None:
            security |= {"fsGroup": trainer.fs_group, "fsGroupChangePolicy": "OnRootMismatch"}
    elif trainer.run_as_user is not None:
        security["runAsUser"] = trainer.run_as_user
    if trainer.run_as_group is not None:
        security["runAsGroup"] = trainer.run_as_group
    return security


def beside(pods: LabelSelector, *, required: bool) -> Manifest:
    """core/v1 PodAffinity to the node of these pods, required or preferred."""
    selector = pods.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    term: Manifest = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    if required:
        return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}


def _container(
    command: TrainerCommand, adapter: AdapterObject, settings: Settings, mounts: list[JsonValue]
) -> Manifest:
    trainer = adapter.spec.trainer
    resources: Manifest = {}
    if trainer.resources.limits:
        resources["limits"] = dict(trainer.resources.limits)
    if trainer.resources.requests:
        resources["requests"] = dict(trainer.resources.requests)
    if trainer.resource_claims:
        resources["claims"] = [
            {"name": claim.name, **({"request": claim.request} if claim.request else {})}
            for claim in trainer.resource_claims
        ]
    return {
        "name": naming.TRAINER_CONTAINER,
        "image": trainer.image or _image(adapter, settings),
        "imagePullPolicy": trainer.image_pull_policy or settings.trainer_image_pull_policy,
        "args": [command.value],
        "env": _environment(adapter, settings),
        "ports": [{"name": "progress", "containerPort": places.PROGRESS_PORT}],
        "resources": resources,
        "terminationMessagePath": places.TERMINATION_MESSAGE_FILE,
        "terminationMessagePolicy": "File",
        "securityContext": dict(RESTRICTED),
        "volumeMounts": mounts,
    }


def _image(adapter: AdapterObject, settings: Settings) -> str:
    elsewhere = computes_elsewhere(adapter, settings.engine)
    return settings.remote_trainer_image if elsewhere else settings.trainer_image


def _environment(adapter: AdapterObject, settings: Settings) -> list[JsonValue]:
    """The operator's variables and the user's; the user's win."""
    engine = engine_of(adapter, settings.engine)
    ours: list[Manifest] = [
        {"name": places.EXECUTION_MODE_VARIABLE, "value": engine.name},
        {"name": "HOME", "value": places.SCRATCH_DIRECTORY},
    ]
    if engine.modal is not None and settings.modal_server_url is not None:
        ours.append({"name": places.MODAL_SERVER_VARIABLE, "value": settings.modal_server_url})
    theirs = [wire(variable) for variable in adapter.spec.trainer.env]
    given = {variable["name"] for variable in theirs}
    return [*(variable for variable in ours if variable["name"] not in given), *theirs]


def companion_config_map(namespace: str, files: Mapping[str, str]) -> Manifest:
    """The ConfigMap that brings the companion into vLLM pods: one key for each file of its package."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": naming.COMPANION_CONFIG_MAP,
            "namespace": namespace,
            "labels": dict(naming.COMMON_LABELS),
        },
        "data": dict(files),
    }
