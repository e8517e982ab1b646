"""The operator as a process of its own, as its image runs it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.kubectl import kubectl_for
from tests.cluster.light import LightCluster
from tests.cluster.paths import REPOSITORY_ROOT
from tests.cluster.services.control_plane import free_ports
from tests.simulation.program import Program

OPERATOR_NAMESPACE = "claas-system"
SOURCES = (
    "crds/src",
    "contract/src",
    "kube/src",
    "vllm_client/src",
    "bounded/src",
    "modal_client/src",
    "operator/src",
    "vllm_companion/src",
)
TRAINER_IMAGE = "registry.invalid/claas-trainer:test"
START_SECONDS = 60.0


def install(cluster: LightCluster) -> None:
    """What the operator needs to start: the CRDs, and its namespace."""
    kubectl = kubectl_for(cluster.kubeconfig)
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY_ROOT / "crds" / "manifests"))
    kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE}}
    kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(namespace))


class OperatorProcess(Program):
    """`python -m claas_operator` against one API server; started, killed and started again."""

    def __init__(
        self,
        cluster: LightCluster,
        log: Path,
        *,
        name: str = "operator-0",
        health_port: int,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.metrics_port = free_ports(1)[0]
        program = {
            "CLAAS_TRAINER_IMAGE": TRAINER_IMAGE,
            "CLAAS_LOG_LEVEL": "DEBUG",
            "CLAAS_HEALTH_PORT": str(health_port),
            "CLAAS_METRICS_PORT": str(self.metrics_port),
            "POD_NAME": name,
            "POD_NAMESPACE": OPERATOR_NAMESPACE,
            **(settings or {}),
        }
        super().__init__("claas_operator", cluster, log, SOURCES, program)
        self._read_from = 0

    def start(self) -> None:
        """Start the process; it may not lead yet."""
        self._read_from = self.log.stat().st_size if self.log.exists() else 0
        super().start()

    def leads(self) -> bool:
        """Whether the process has begun to lead since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._read_from)
            return b"leading as" in log.read()

    def start_leading(self) -> None:
        """Start the process and wait until it leads."""
        self.start()
        self.wait_until_leading()

    def wait_until_leading(self, timeout_seconds: float = START_SECONDS) -> None:
        """Wait until the process leads; fails with the end of its log when it ends or takes too long."""
        deadline = time.monotonic() + timeout_seconds
        while not self.leads():
            assert self.running, f"the operator ended: {self.tail()}"
            assert time.monotonic() < deadline, f"the operator does not lead: {self.tail()}"
            time.sleep(0.05)
