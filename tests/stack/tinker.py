"""A namespace whose adapters are trained and served through Tinker: the service is a pod of tests/peers/tinker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from pydantic import JsonValue

from claas_kube.objects.resources import AdapterObject
from tests.builders.resources import BASE_NAME, MODEL_CLAIM, MODEL_PATH, Manifest, lora_adapter
from tests.cluster.images.specs import TINKER_PEER
from tests.cluster.vllm import MODEL_MOUNT, PORT, USER
from tests.stack import resources, serving
from tests.stack.install import Stack
from tests.stack.resources import wait_for
from tests.stack.serving import Serving

PEER = "tinker"
"""The Deployment and the Service of the peer."""
KEY_SECRET = "claas-tinker"
API_KEY = "tml-key-of-the-test-cluster"
CYCLE_SECONDS = 0.5
"""The peer's clock cycle; that of the hosted service is said to be about 10 s."""


def create(stack: Stack, namespace: str, *, key: str = API_KEY) -> Serving:
    """Make the namespace, its volumes and Secrets, and the service. `key` is the namespace's key for it."""
    made = serving.create(stack, namespace, serve=False)
    stack.kubectl.apply([key_secret(namespace, key), _deployment(stack, namespace), _service(namespace)])
    return made


def key_secret(namespace: str, key: str) -> Manifest:
    """The Secret with the API key, by the name that `engine: {tinker: {}}` looks for."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": KEY_SECRET, "namespace": namespace},
        "stringData": {"api-key": key},
    }


def base_url(stack: Stack, namespace: str) -> str:
    """The service's address, once its pod is ready. It is no name: the test cluster has no DNS."""
    ready = wait_for(
        f"the Tinker service of {namespace}",
        lambda: [each for each in resources.pods(stack, namespace, f"app={PEER}") if each.ready],
        180,
    )
    assert ready
    address = stack.kubectl("get", "service", PEER, "-n", namespace, "-o", "jsonpath={.spec.clusterIP}")
    return f"http://{address.strip()}:{PORT}"


def tinker_adapter(
    name: str, namespace: str, url: str, *, training: Mapping[str, JsonValue], **engine: JsonValue
) -> Manifest:
    """A LoraAdapter that is trained by the service at that address and served by the inference proxy."""
    manifest = cast(dict[str, JsonValue], json.loads(json.dumps(lora_adapter(name, namespace, training=training))))
    spec = cast(dict[str, JsonValue], manifest["spec"])
    spec["engine"] = {"tinker": {"baseUrl": url, **engine}}
    spec["lora"] = {"rank": 8}
    spec["serving"] = {"tinkerProxy": {}}
    return manifest


def proxy_url(stack: Stack, adapter: AdapterObject, timeout_seconds: float = 120) -> str:
    """The address of the adapter's first ready inference proxy, once there is one."""
    namespace = adapter.metadata.namespace
    selector = _selector(stack, namespace, adapter.deployment_name)
    ready = wait_for(
        f"the inference proxy of {adapter.metadata.name}",
        lambda: [each for each in resources.pods(stack, namespace, selector) if each.ready],
        timeout_seconds,
    )
    return f"http://{ready[0].status.pod_ip}:{adapter.spec.serving.port}"


def _selector(stack: Stack, namespace: str, deployment: str) -> str:
    text = stack.kubectl("get", "deployment", deployment, "-n", namespace, "-o", "json")
    labels = cast(dict[str, str], json.loads(text)["spec"]["selector"]["matchLabels"])
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _service(namespace: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": PEER, "namespace": namespace},
        "spec": {"selector": {"app": PEER}, "ports": [{"name": "http", "port": PORT, "targetPort": PORT}]},
    }


def _deployment(stack: Stack, namespace: str) -> Manifest:
    arguments = [
        f"--model={MODEL_MOUNT}/{MODEL_PATH}",
        f"--model-name={BASE_NAME}",
        "--host=0.0.0.0",
        f"--port={PORT}",
        f"--api-key={API_KEY}",
        f"--cycle-seconds={CYCLE_SECONDS:g}",
    ]
    container = {
        "name": "tinker",
        "image": stack.image(TINKER_PEER),
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"requests": {"cpu": "300m", "memory": "512Mi"}},
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1, "failureThreshold": 3},
        "volumeMounts": [
            {"name": "model", "mountPath": MODEL_MOUNT, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": PEER, "namespace": namespace},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": PEER}},
            "strategy": {"type": "Recreate"},
            "template": {
                "metadata": {"labels": {"app": PEER}},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 1,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": USER,
                        "fsGroup": USER,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [container],
                    "volumes": [
                        {"name": "model", "persistentVolumeClaim": {"claimName": MODEL_CLAIM}},
                        {"name": "tmp", "emptyDir": {}},
                    ],
                },
            },
        },
    }
