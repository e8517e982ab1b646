"""What other rooms ask of the directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from claas_crds.v1alpha1.version import AdapterVersion
from claas_gateway.directory.models import Adapter, Server, ServerGroup, Target
from claas_kube.objects.resources import JobObject


class Directory(Protocol):
    """Adapters, base models, servers and jobs, from an index that watches keep up to date. No call does I/O."""

    def resolve(self, model: str | None, namespace: str | None, adapter: str | None = None) -> Target:
        """What a model name stands for: an adapter's served name, name, identifier, `ID-init`, `ID-latest` or dashed
        identifier, or a base model; None: the only base model there is.

        `namespace` and `adapter` are those of the caller; an adapter of another one is not found. Raises
        NotFound, and Unprocessable that names the models if there are several for None.
        """
        ...

    def adapter(self, namespace: str, name: str) -> Adapter | None:
        """A LoraAdapter by its name."""
        ...

    def adapters(self, namespace: str | None, adapter: str | None = None) -> Sequence[Adapter]:
        """All that the caller may see, by identifier."""
        ...

    def base_models(self, namespace: str | None) -> Sequence[str]:
        """Names of the base models that Deployments of adapters serve, in order."""
        ...

    def versions(self, adapter: Adapter) -> Sequence[AdapterVersion]:
        """The versions in its status."""
        ...

    def servers(self, group: ServerGroup) -> Sequence[Server]:
        """The pods of a Deployment, or the vLLM outside the cluster."""
        ...

    def job(self, namespace: str, name: str) -> JobObject | None:
        """A DistillJob of this gateway's."""
        ...

    def listed(self) -> bool:
        """Whether everything was listed once; until then what is missing may exist."""
        ...

    def listen(self, changed: Callable[[str, str], None]) -> None:
        """Call `changed(namespace, adapter)` when an adapter or one of its jobs has changed."""
        ...
