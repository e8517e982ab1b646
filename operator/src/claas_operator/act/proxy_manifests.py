"""Manifests of an inference proxy: Deployment, Service, and the Secret with its control token."""

from __future__ import annotations

import base64

from pydantic import JsonValue

from claas_contract import places
from claas_crds.v1alpha1.lora_adapter import KIND as ADAPTER_KIND
from claas_kube.objects.meta import LabelSelector, Manifest
from claas_kube.objects.resources import PROXY_TOKEN_KEY, AdapterObject
from claas_operator.act.manifests import (
    RESTRICTED,
    Owner,
    beside,
    key_mounts,
    model_mounts,
    pod_security,
    serving_mounts,
)
from claas_operator.act.pod_volumes import Mount, claim_mount, pod_volumes, wire
from claas_operator.act.trainer_input import model_location
from claas_operator.plan import naming
from claas_operator.plan.engine.choice import engine_of
from claas_operator.settings import Settings

CONTAINER = "inference-proxy"
ALIAS_DIRECTORY = "/var/lib/claas/aliases"
TERMINATION_GRACE_SECONDS = 120
"""For the answers that are under way when a pod is replaced."""
STOPPING_SECONDS = 5
REQUESTS: Manifest = {"cpu": "100m", "memory": "768Mi"}
LIMITS: Manifest = {"memory": "2Gi"}


def proxy_token(adapter: AdapterObject, token: str) -> Manifest:
    """The Secret with the control token that the operator chose."""
    data: Manifest = {PROXY_TOKEN_KEY: base64.b64encode(token.encode()).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": _metadata(adapter), "type": "Opaque", "data": data}


def proxy_service(adapter: AdapterObject) -> Manifest:
    """The Service by which clients may ask the proxy."""
    port: Manifest = {"name": "http", "port": adapter.spec.serving.port, "targetPort": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(adapter),
        "spec": {"selector": _selector(adapter), "ports": [port]},
    }


def proxy_deployment(adapter: AdapterObject, settings: Settings, *, many_nodes: bool) -> Manifest:
    """The Deployment. `many_nodes`: whether the adapter's volume can be mounted on several nodes at once."""
    proxy = adapter.spec.serving.tinker_proxy
    assert proxy is not None
    engine: dict[str, JsonValue] = {naming.ENGINE_LABEL: engine_of(adapter, settings.engine).name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(adapter),
        "spec": {
            "replicas": proxy.replicas,
            "selector": {"matchLabels": _selector(adapter)},
            # The old pods answer until the new ones are ready.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "revisionHistoryLimit": 3,
            "template": {
                "metadata": {"labels": {**_labels(adapter), **engine}},
                "spec": _pod_spec(adapter, settings, many_nodes=many_nodes),
            },
        },
    }


def _pod_spec(adapter: AdapterObject, settings: Settings, *, many_nodes: bool) -> Manifest:
    trainer = adapter.spec.trainer
    scratch: list[Mount] = [
        Mount({"name": "claas-aliases", "emptyDir": {}}, ALIAS_DIRECTORY, read_only=False),
        Mount({"name": "claas-scratch", "emptyDir": {}}, places.SCRATCH_DIRECTORY, read_only=False),
    ]
    storage = claim_mount("claas-storage", adapter.spec.storage.claim_name, places.STORAGE_DIRECTORY, read_only=True)
    mounts = [storage, *scratch, *model_mounts(adapter), *key_mounts(adapter, settings), *serving_mounts(adapter)]
    volumes, container_mounts = pod_volumes(mounts, trainer)
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": TERMINATION_GRACE_SECONDS,
        "securityContext": pod_security(trainer, trainer.identity or settings.trainer_identity),
        "containers": [_container(adapter, settings, container_mounts)],
        "volumes": volumes,
        **_placement(adapter, many_nodes=many_nodes),
    }
    if trainer.image_pull_secrets:
        spec["imagePullSecrets"] = [dict(secret) for secret in trainer.image_pull_secrets]
    return spec


def _placement(adapter: AdapterObject, *, many_nodes: bool) -> Manifest:
    """On several nodes where the volume allows it, or else together: a pod on another node would wait for the volume
    for ever, and the rollout with it."""
    selector = _selector(adapter)
    if not many_nodes:
        labels = {key: str(value) for key, value in selector.items()}
        return {"affinity": {"podAffinity": beside(LabelSelector(match_labels=labels), required=False)}}
    return {
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector},
            }
        ]
    }


def _container(adapter: AdapterObject, settings: Settings, mounts: list[JsonValue]) -> Manifest:
    return {
        "name": CONTAINER,
        "image": settings.proxy_image,
        "imagePullPolicy": settings.trainer_image_pull_policy,
        "command": ["python", "-m", "claas_inference_proxy"],
        "env": _environment(adapter, settings),
        "ports": [{"name": "http", "containerPort": adapter.spec.serving.port}],
        "resources": {"requests": dict(REQUESTS), "limits": dict(LIMITS)},
        # It answers /health as soon as it listens, and /ready once its version has answered.
        "startupProbe": _probe("/health", period=2, failures=60),
        "livenessProbe": _probe("/health", period=10, failures=6),
        "readinessProbe": _probe("/ready", period=2, failures=3),
        # Requests come until every node knows that the pod is going.
        "lifecycle": {"preStop": {"sleep": {"seconds": STOPPING_SECONDS}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": dict(RESTRICTED),
        "volumeMounts": mounts,
    }


def _probe(path: str, *, period: int, failures: int) -> Manifest:
    request: Manifest = {"path": path, "port": "http"}
    return {"httpGet": request, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _environment(adapter: AdapterObject, settings: Settings) -> list[JsonValue]:
    """The proxy's variables, and the user's for trainers, such as an outgoing proxy's; the user's win."""
    tinker = engine_of(adapter, settings.engine).tinker
    assert tinker is not None
    model = model_location(adapter)
    chosen = {
        "CLAAS_MODEL": model.path or model.repository,
        "CLAAS_MODEL_REVISION": model.revision,
        "CLAAS_MODEL_NAME": adapter.spec.model.name,
        "CLAAS_TINKER_BASE_MODEL": tinker.base_model,
        "CLAAS_TINKER_KEY_FILE": places.TINKER_KEY_FILE,
        "CLAAS_TINKER_BASE_URL": tinker.base_url,
        "CLAAS_TINKER_PROJECT": tinker.project_id,
        "CLAAS_SERVED_NAME": adapter.served_name,
        "CLAAS_ADAPTER_DIRECTORY": f"{places.STORAGE_DIRECTORY}/{adapter.storage_path}",
        "CLAAS_PROBE_PROMPT": adapter.spec.serving.probe.prompt,
        "CLAAS_PORT": str(adapter.spec.serving.port),
        "CLAAS_TOKEN_FILE": places.CONTROL_TOKEN_FILE,
        "CLAAS_ALIAS_DIR": ALIAS_DIRECTORY,
        "TINKER_TELEMETRY": "0",
        "HOME": places.SCRATCH_DIRECTORY,
        **_hub(adapter),
    }
    theirs = [wire(variable) for variable in adapter.spec.trainer.env]
    given = {variable["name"] for variable in theirs}
    # Kubernetes replaces $(NAME) in values, and $$ by $.
    ours: list[JsonValue] = [
        {"name": name, "value": value.replace("$", "$$")}
        for name, value in chosen.items()
        if value is not None and name not in given
    ]
    return [*ours, *theirs]


def _hub(adapter: AdapterObject) -> dict[str, str]:
    """Where the hub's client keeps the tokenizer, and its token."""
    hub = adapter.spec.model.source.hub
    if hub is None:
        return {}
    cache = {"HF_HUB_CACHE": places.HUB_CACHE_DIRECTORY} if hub.cache_claim_name is not None else {}
    return {**cache, **({"HF_TOKEN_PATH": places.HUB_TOKEN_FILE} if hub.token_secret_ref is not None else {})}


def _metadata(adapter: AdapterObject) -> Manifest:
    owner = Owner(ADAPTER_KIND, adapter.metadata)
    return {
        "name": adapter.deployment_name,
        "namespace": adapter.metadata.namespace,
        "labels": _labels(adapter),
        "ownerReferences": [owner.reference()],
    }


def _labels(adapter: AdapterObject) -> dict[str, JsonValue]:
    return {**naming.PROXY_LABELS, naming.ADAPTER_UID_LABEL: adapter.metadata.uid}


def _selector(adapter: AdapterObject) -> dict[str, JsonValue]:
    """What never changes of a pod's labels."""
    name = "app.kubernetes.io/name"
    return {name: naming.PROXY_LABELS[name], naming.ADAPTER_UID_LABEL: adapter.metadata.uid}
