"""kubectl against one cluster."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.host.process import run
from tests.cluster.services.binaries import Binary, ensure


@dataclass(frozen=True)
class Kubectl:
    """kubectl with a kubeconfig; every call is bounded."""

    program: Path
    kubeconfig: Path

    def __call__(
        self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 60.0, check: bool = True
    ) -> str:
        """Run one command and return its output. Raises `CommandError` when it fails and `check` is set."""
        return run(
            [self.program, "--kubeconfig", self.kubeconfig, *arguments],
            input_text=stdin,
            timeout_seconds=timeout_seconds,
            check=check,
        )

    def apply(self, manifests: Sequence[Mapping[str, object]]) -> None:
        """Apply plain manifests, server-side."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(document))


def kubectl_for(kubeconfig: Path) -> Kubectl:
    """The machine's kubectl, or the one in the cache."""
    return Kubectl(ensure([Binary.KUBECTL])[Binary.KUBECTL], kubeconfig)
