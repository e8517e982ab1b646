"""A job's samples as far as the operator can see them: whether they are there, and whether each is one.

They are checked before the job has a turn or a trainer. Only verdicts are kept, never what was read.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from claas_kube.api import CONFIG_MAPS, SECRETS, Resource
from claas_kube.objects.resources import JobObject
from claas_operator.clients.reader import Reader
from claas_operator.plan.samples import InlineSamples, document_fault

REMEMBERED = 1000
"""How many verdicts are kept, so that a queued job's samples are not checked at every look."""


@dataclass(frozen=True)
class SamplesSeen:
    """What is in the way of a job's samples; None: nothing that can be seen."""

    missing: str | None = None
    """What holds them is not there."""
    too_large: str | None = None
    """No trainer's input can be made of them."""
    invalid: str | None = None
    """One of them is wrong."""


class SamplesObserver:
    """Looks at the samples of jobs."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._verdicts: OrderedDict[tuple[str, str], str | None] = OrderedDict()

    async def look(self, job: JobObject, inline: InlineSamples | None) -> SamplesSeen:
        """What is in the way of a job's samples; `inline`: what is known of those that stand in the job itself."""
        source = job.spec.samples
        if source.config_map_ref is not None:
            return await self._document(job, CONFIG_MAPS, source.config_map_ref.name, source.config_map_ref.key)
        if source.secret_ref is not None:
            return await self._document(job, SECRETS, source.secret_ref.name, source.secret_ref.key)
        if source.file is not None:
            claim = source.file.claim_name
            found = await self._read.claim_found(job.metadata.namespace, claim)
            gone = f"spec.samples.file.claimName: there is no PersistentVolumeClaim {claim}"
            return SamplesSeen() if found else SamplesSeen(missing=gone)
        return SamplesSeen(too_large=inline.too_large, invalid=inline.invalid) if inline else SamplesSeen()

    async def _document(self, job: JobObject, resource: Resource, name: str, key: str) -> SamplesSeen:
        field, kind = ("secretRef", "Secret") if resource is SECRETS else ("configMapRef", "ConfigMap")
        namespace = job.metadata.namespace
        found = await self._read.document(resource, namespace, name, key)
        if found is None:
            return SamplesSeen(f"spec.samples.{field}.name: there is no {kind} {name} in namespace {namespace}")
        if found.data is None:
            return SamplesSeen(f"spec.samples.{field}.key: {kind} {name} has no key {key}")
        if job.status.start_time is not None:
            return SamplesSeen()
        fault = await self._fault(f"{found.uid}/{key}", found.version, found.data)
        return SamplesSeen(invalid=None if fault is None else f"{fault} ({kind} {name}, key {key})")

    async def _fault(self, owner: str, version: str, data: bytes) -> str | None:
        """What is wrong with a document; `owner` and `version` say which one it is."""
        key = (owner, version)
        if key not in self._verdicts:
            # A megabyte takes tens of milliseconds, in which others go on.
            self._verdicts[key] = await asyncio.to_thread(document_fault, data)
        self._verdicts.move_to_end(key)
        while len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)
        return self._verdicts[key]
