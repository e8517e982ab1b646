"""Manifests of a vLLM server on the CPU, as a user of the operator would write them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.cluster.host.volumes import Manifest
from tests.cluster.images.specs import VLLM

PORT = 8000
MODEL_MOUNT = "/models"
ADAPTER_MOUNT = "/adapters"
COMPANION_PARENT = "/opt/claas-companion"
COMPANION_MOUNT = f"{COMPANION_PARENT}/claas_vllm"
USER = 65532


@dataclass(frozen=True)
class SecretMount:
    """A Secret mounted as a folder."""

    secret: str
    path: str


@dataclass(frozen=True)
class Companion:
    """The companion: its ConfigMap, and the arguments and environment that bring it into vLLM."""

    config_map: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretMount, ...] = ()


@dataclass(frozen=True)
class VllmServer:
    """A Deployment of vLLM on the CPU and its Service.

    `model_claim` is a PersistentVolumeClaim with the model at `model_path` inside; `adapter_claim` one that
    adapters are published on, mounted at `/adapters`.
    """

    name: str
    namespace: str
    model_claim: str
    model_path: str
    served_name: str
    adapter_claim: str | None = None
    companion: Companion | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    replicas: int = 1
    max_model_length: int = 512
    max_lora_rank: int = 16
    max_loras: int = 4
    kv_cache_gibibytes: int = 1
    thread_count: int = 1
    cpu_request: str = "300m"
    memory_request: str = "1Gi"
    image: str = VLLM.development_name
    readiness_gates: Sequence[str] = ()
    pod_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        """What the Service and the Deployment select by."""
        return {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": self.name}


def manifests(server: VllmServer) -> list[Manifest]:
    """The Deployment and the Service."""
    return [deployment(server), service(server)]


def service(server: VllmServer) -> Manifest:
    """A Service in front of the server's ready pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": server.name, "namespace": server.namespace, "labels": server.labels},
        "spec": {
            "selector": server.labels,
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }


def arguments(server: VllmServer) -> list[str]:
    """vLLM's command line. There is no `--enable-sleep-mode`: the CPU platform refuses it."""
    companion = server.companion.arguments if server.companion else ()
    return [
        f"--model={MODEL_MOUNT}/{server.model_path}",
        f"--served-model-name={server.served_name}",
        f"--port={PORT}",
        f"--max-model-len={server.max_model_length}",
        "--enable-lora",
        f"--max-lora-rank={server.max_lora_rank}",
        f"--max-loras={server.max_loras}",
        "--enforce-eager",
        *companion,
        *server.arguments,
    ]


def environment(server: VllmServer) -> dict[str, str]:
    """vLLM's environment. Threads are bounded: several servers and a trainer share a few cores."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(server.kv_cache_gibibytes),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(server.thread_count),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # The sampler would be compiled at the first log-probability asked for, and the image has no C++ compiler.
        "TORCHDYNAMO_DISABLE": "1",
        **(server.companion.environment if server.companion else {}),
        **server.environment,
    }


@dataclass(frozen=True)
class _Mount:
    """A volume and where it is mounted."""

    name: str
    path: str
    source: Mapping[str, object]
    read_only: bool = False

    def volume(self) -> dict[str, object]:
        return {"name": self.name, **self.source}

    def mount(self) -> dict[str, object]:
        return {"name": self.name, "mountPath": self.path, "readOnly": self.read_only}


def _mounts(server: VllmServer) -> list[_Mount]:
    mounts = [
        _Mount("shm", "/dev/shm", {"emptyDir": {"medium": "Memory"}}),
        _Mount("tmp", "/tmp", {"emptyDir": {}}),
        _Mount("model", MODEL_MOUNT, {"persistentVolumeClaim": {"claimName": server.model_claim}}, read_only=True),
    ]
    if server.adapter_claim is not None:
        claim = {"persistentVolumeClaim": {"claimName": server.adapter_claim}}
        mounts.append(_Mount("adapters", ADAPTER_MOUNT, claim))
    if server.companion is not None:
        source = {"configMap": {"name": server.companion.config_map}}
        mounts.append(_Mount("companion", COMPANION_MOUNT, source, read_only=True))
        for index, secret in enumerate(server.companion.secrets):
            secret_source = {"secret": {"secretName": secret.secret}}
            mounts.append(_Mount(f"companion-secret-{index}", secret.path, secret_source, read_only=True))
    return mounts


def deployment(server: VllmServer) -> Manifest:
    """The Deployment. The pod is Ready when vLLM's /health answers."""
    variables = environment(server)
    if server.companion is not None:
        variables = {"PYTHONPATH": COMPANION_PARENT, **variables}
    mounts = _mounts(server)
    health = {"path": "/health", "port": "http"}
    container: dict[str, object] = {
        "name": "vllm",
        "image": server.image,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments(server),
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"requests": {"cpu": server.cpu_request, "memory": server.memory_request}},
        "startupProbe": {"httpGet": health, "periodSeconds": 1, "failureThreshold": 600, "timeoutSeconds": 2},
        "readinessProbe": {"httpGet": health, "periodSeconds": 2, "failureThreshold": 3, "timeoutSeconds": 5},
        "volumeMounts": [each.mount() for each in mounts],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": server.name, "namespace": server.namespace, "labels": server.labels},
        "spec": {
            "replicas": server.replicas,
            "selector": {"matchLabels": server.labels},
            "strategy": {"type": "Recreate"},
            "template": {
                "metadata": {"labels": {**server.labels, **server.pod_labels}},
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
                    "readinessGates": [{"conditionType": each} for each in server.readiness_gates],
                    "containers": [container],
                    "volumes": [each.volume() for each in mounts],
                },
            },
        },
    }
