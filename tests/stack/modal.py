"""A namespace whose adapters are trained and served on Modal: the platform is a pod of tests/peers/modal, to which
both apps are deployed as users deploy them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import httpx
from pydantic import BaseModel, JsonValue

from claas_kube.objects.resources import AdapterObject
from tests.builders.resources import BASE_NAME, CONTROL_SECRET, MODEL_CLAIM, Manifest, lora_adapter
from tests.cluster import vllm
from tests.cluster.host.process import run
from tests.cluster.images.specs import MODAL_PEER
from tests.cluster.paths import REPOSITORY_ROOT
from tests.cluster.vllm import USER
from tests.peers.modal.server import PROXY_KEY, PROXY_SECRET, TOKEN_ID, TOKEN_SECRET
from tests.stack import resources, serving
from tests.stack.install import Stack, install_release
from tests.stack.resources import wait_for
from tests.stack.rollouts import Server
from tests.stack.serving import Serving

PEER = "modal"
"""The Deployment and the Service of the peer."""
API_PORT, FILES_PORT, SERVER_PORT = 9000, 9001, 9002
"""Of the peer. vLLM has 8000 in its container, which is in the same pod."""
MODEL = "claas/tiny"
"""The base model's name on the platform, and its folder on the model volume."""
TOKEN_SECRET_NAME, PROXY_SECRET_NAME = "claas-modal", "claas-modal-proxy"
TRAINER_APP, SERVER_APP = "claas_trainer.engines.modal.app", "claas_modal_vllm.app"
PACKAGES = ":".join(str(folder) for folder in sorted(REPOSITORY_ROOT.glob("*/src")))
TRAINER_SETTINGS = {
    "CLAAS_MODAL_MODEL": MODEL,
    "CLAAS_MODAL_GPU": "none",
    "CLAAS_MODAL_IDLE_SECONDS": "600",
    "CLAAS_MODAL_CPU": "1",
    "CLAAS_MODAL_MEMORY_MIB": "2048",
}
SERVER_SETTINGS = {
    **TRAINER_SETTINGS,
    "CLAAS_MODAL_MODEL_NAME": BASE_NAME,
    "CLAAS_MODAL_MAX_LORA_RANK": "16",
    "CLAAS_MODAL_VLLM_ARGS": "--max-model-len=512 --enforce-eager",
}
CLI_SECONDS = 120.0


class Call(BaseModel):
    """A call that was made on the platform."""

    id: str
    app: str
    runs: list[str]
    """The containers that ran it, one after the other."""


@dataclass(frozen=True)
class Platform:
    """The peer in a namespace, as those see it who deploy to it."""

    address: str

    @property
    def api(self) -> str:
        """What clients of Modal are told as MODAL_SERVER_URL."""
        return f"http://{self.address}:{API_PORT}"

    @property
    def orders(self) -> str:
        """Where the peer takes orders and tells what it was asked."""
        return f"http://{self.address}:{FILES_PORT}/peer"

    def order(self, kind: str, **order: JsonValue) -> None:
        """Have something go wrong, or changed: a path below `orders`, and what is sent there."""
        httpx.post(f"{self.orders}/{kind}", json=order, trust_env=False).raise_for_status()

    def steps(self) -> list[Call]:
        """Calls of the trainer's app, in order."""
        answer = httpx.get(f"{self.orders}/calls", trust_env=False).raise_for_status()
        calls = [Call.model_validate(each) for each in answer.json()]
        return [call for call in calls if call.app == "claas-trainer"]

    @property
    def environment(self) -> dict[str, str]:
        """What the client and the `modal` command need, and no file of the user's."""
        return {
            "MODAL_SERVER_URL": self.api,
            "MODAL_TOKEN_ID": TOKEN_ID,
            "MODAL_TOKEN_SECRET": TOKEN_SECRET,
            "MODAL_PROXY_KEY": PROXY_KEY,
            "MODAL_PROXY_SECRET": PROXY_SECRET,
            "MODAL_ENVIRONMENT": "main",
            "MODAL_CONFIG_PATH": "/nonexistent/modal.toml",
            "MODAL_MAX_THROTTLE_WAIT": "10",
        }

    def cli(self, *arguments: str, settings: Mapping[str, str] | None = None) -> str:
        """Run the `modal` command. Raises CommandError."""
        environment = {**self.environment, "PYTHONPATH": PACKAGES, **(settings or {})}
        return run([sys.executable, "-m", "modal", *arguments], timeout_seconds=CLI_SECONDS, environment=environment)


def create(stack: Stack, namespace: str, *, token_secret: str = TOKEN_SECRET) -> Serving:
    """Make the namespace, its volumes and Secrets, and the platform with both apps deployed; operator and trainers
    are told its address. `token_secret` is part of the namespace's token."""
    made = serving.create(stack, namespace, serve=False, model_path=MODEL)
    proxy = _secret(namespace, PROXY_SECRET_NAME, {"key": PROXY_KEY, "secret": PROXY_SECRET})
    stack.kubectl.apply([token(namespace, token_secret), proxy, _service(namespace)])
    address = _address(stack, namespace)
    stack.kubectl.apply([_deployment(stack, namespace, address)])
    install_release(stack, f"remote.modalServerUrl=http://{address}:{API_PORT}")
    ready = platform(stack, namespace)
    fill(stack, ready)
    deploy(made, ready)
    return made


def token(namespace: str, secret: str) -> Manifest:
    """The Secret with the platform's token, by the name that `engine: {modal: {}}` looks for."""
    return _secret(namespace, TOKEN_SECRET_NAME, {"token-id": TOKEN_ID, "token-secret": secret})


def platform(stack: Stack, namespace: str) -> Platform:
    """The platform, once its pod is ready."""
    wait_for(f"the Modal platform of {namespace}", lambda: is_ready(stack, namespace), 180)
    return Platform(_address(stack, namespace))


def is_ready(stack: Stack, namespace: str) -> bool:
    """Whether the platform's pod is ready."""
    return any(each.ready for each in resources.pods(stack, namespace, f"app={PEER}"))


def fill(stack: Stack, on: Platform) -> None:
    """Make the Volumes, and upload the base model, as docs/modal.md tells users to."""
    for volume in ("claas-weights", "claas-adapters"):
        on.cli("volume", "create", volume, "--version", "2")
    on.cli("volume", "put", "claas-weights", str(stack.model_folder), f"/{MODEL}")


def deploy(made: Serving, on: Platform) -> None:
    """Deploy both apps, as docs/modal.md tells users to."""
    on.cli("secret", "create", "claas-control", f"CLAAS_CONTROL_TOKEN={made.token}")
    on.cli("deploy", "-m", TRAINER_APP, settings=TRAINER_SETTINGS)
    on.cli("deploy", "-m", SERVER_APP, settings=SERVER_SETTINGS)


def modal_adapter(name: str, namespace: str, *, training: Mapping[str, JsonValue], **engine: JsonValue) -> Manifest:
    """A LoraAdapter that is trained and served on the platform."""
    manifest = cast(dict[str, JsonValue], json.loads(json.dumps(lora_adapter(name, namespace, training=training))))
    spec = cast(dict[str, JsonValue], manifest["spec"])
    spec["model"] = {
        "name": BASE_NAME,
        "source": {"persistentVolumeClaim": {"claimName": MODEL_CLAIM, "path": MODEL}},
    }
    spec["engine"] = {"modal": engine}
    spec["serving"] = {"modalApp": {}, "controlTokenSecretRef": {"name": CONTROL_SECRET}}
    return manifest


def server(adapter: AdapterObject) -> Server:
    """The server that answers for an adapter, with what Modal asks of every request."""
    assert adapter.status.serving_url is not None
    return Server(adapter.status.serving_url, {"Modal-Key": PROXY_KEY, "Modal-Secret": PROXY_SECRET})


def _address(stack: Stack, namespace: str) -> str:
    """The Service's address. It is no name: the test cluster has no DNS."""
    return stack.kubectl("get", "service", PEER, "-n", namespace, "-o", "jsonpath={.spec.clusterIP}").strip()


def _secret(namespace: str, name: str, entries: Mapping[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": dict(entries),
    }


def _service(namespace: str) -> Manifest:
    ports = (("api", API_PORT), ("files", FILES_PORT), ("server", SERVER_PORT))
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": PEER, "namespace": namespace},
        "spec": {
            "selector": {"app": PEER},
            "ports": [{"name": name, "port": port, "targetPort": port} for name, port in ports],
        },
    }


def _deployment(stack: Stack, namespace: str, address: str) -> Manifest:
    arguments = [
        "--folder=/data",
        "--host=0.0.0.0",
        f"--advertise={address}",
        f"--port={API_PORT}",
        f"--http-port={FILES_PORT}",
        f"--server-port=claas-vllm/Vllm={SERVER_PORT}",
    ]
    # What the image of a user's app would say: threads are bounded, and the image has no C++ compiler.
    variables = vllm.environment(serving.server(stack, namespace, with_companion=False))
    arguments += [f"--container-env={name}={value}" for name, value in variables.items()]
    container = {
        "name": "modal",
        "image": stack.image(MODAL_PEER),
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "ports": [{"name": "api", "containerPort": API_PORT}],
        "resources": {"requests": {"cpu": "600m", "memory": "2Gi"}},
        "readinessProbe": {"tcpSocket": {"port": API_PORT}, "periodSeconds": 1, "failureThreshold": 3},
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
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
                    "terminationGracePeriodSeconds": 5,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": USER,
                        "fsGroup": USER,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [container],
                    "volumes": [
                        {"name": "data", "emptyDir": {}},
                        {"name": "tmp", "emptyDir": {}},
                        {"name": "shm", "emptyDir": {"medium": "Memory"}},
                    ],
                },
            },
        },
    }
