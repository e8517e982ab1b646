"""Checks a job's samples as far as the operator can: whether they exist, and whether each has the right form.

They are checked before the job is admitted. Only the results are kept, never the samples.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, replace

from claas_kube.objects.resources import JobObject
from claas_kube.resources import CONFIG_MAPS, SECRETS, Resource
from claas_operator.clients.reader import Reader
from claas_operator.plan.samples import InlineSamples, SamplesFault, document_fault

REMEMBERED = 1000
"""Number of results kept, so that a queued job's samples are not checked at every pass."""


@dataclass(frozen=True)
class SamplesSeen:
    """Problem with a job's samples; None: none that the operator can see."""

    missing: str | None = None
    """The object that holds them does not exist."""
    too_large: str | None = None
    """They do not fit into a trainer's input."""
    invalid: SamplesFault | None = None
    """Some of them are wrong."""


class SamplesObserver:
    """Checks the samples of jobs."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._verdicts: OrderedDict[tuple[str, str], SamplesFault | None] = OrderedDict()

    async def look(self, job: JobObject, inline: InlineSamples | None) -> SamplesSeen:
        """Problem with a job's samples; `inline`: the result of checking inline samples."""
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
        if fault is None:
            return SamplesSeen()
        return SamplesSeen(invalid=replace(fault, message=f"{fault.message} ({kind} {name}, key {key})"))

    async def _fault(self, owner: str, version: str, data: bytes) -> SamplesFault | None:
        """Fault of a document, which `owner` and `version` identify."""
        key = (owner, version)
        if key not in self._verdicts:
            # In a thread, because a megabyte takes tens of milliseconds.
            self._verdicts[key] = await asyncio.to_thread(document_fault, data)
        self._verdicts.move_to_end(key)
        while len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)
        return self._verdicts[key]
