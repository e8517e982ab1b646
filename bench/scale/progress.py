"""How far the jobs of a namespace are, by a watch that brings table rows in place of jobs with their samples."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pydantic import JsonValue

from claas_crds.v1alpha1.step import JobPhase
from claas_kube.objects.meta import Manifest
from claas_kube.resources import DISTILL_JOBS
from tests.simulation.cluster_api import ClusterApi
from tests.simulation.cluster_api import field as at

_TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
ENDED = (JobPhase.SUCCEEDED, JobPhase.FAILED)


@dataclass
class Progress:
    """When what became of each job (times by the monotonic clock)."""

    namespace: str
    created: dict[str, float] = field(default_factory=dict)
    admitted: dict[str, float] = field(default_factory=dict)
    """When it had its first status: a phase, and the operator's first condition with it."""
    succeeded: dict[str, float] = field(default_factory=dict)
    failed: dict[str, float] = field(default_factory=dict)
    _phase_column: int = -1
    _name_column: int = -1

    @property
    def ended(self) -> int:
        """How many jobs have succeeded or failed."""
        return len(self.succeeded) + len(self.failed)

    async def follow(self, api: ClusterApi) -> None:
        """Watch until cancelled."""
        query = {"includeObject": "None"}
        async for _, found in api.watch(DISTILL_JOBS, namespace=self.namespace, accept=_TABLE, query=query):
            self.take(found, time.monotonic())

    def take(self, found: Manifest, now: float) -> None:
        """Note what one event of the watch tells."""
        columns = found.get("columnDefinitions")
        if isinstance(columns, list):  # The first answer alone has them.
            names = [at(column, "name") for column in columns]
            self._name_column, self._phase_column = names.index("Name"), names.index("Phase")
        rows = found.get("rows")
        for row in rows if isinstance(rows, list) else []:
            self._note(at(row, "cells", self._name_column), at(row, "cells", self._phase_column), now)

    def _note(self, name: JsonValue, phase: JsonValue, now: float) -> None:
        assert isinstance(name, str)
        self.created.setdefault(name, now)
        if phase:
            self.admitted.setdefault(name, now)
        if phase == JobPhase.SUCCEEDED:
            self.succeeded.setdefault(name, now)
        elif phase == JobPhase.FAILED:
            self.failed.setdefault(name, now)
