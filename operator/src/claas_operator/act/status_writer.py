"""Writes status: from plans, and after failed passes."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_kube.api import Api
from claas_kube.errors import ApiError, Unavailable
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.resources import ADAPTERS, DISTILL_JOBS, Resource
from claas_operator.act.pass_failures import adapter_status, job_status, trouble_of
from claas_operator.errors import OperatorError
from claas_operator.keys import Key, Kind
from claas_operator.metrics.counts import Metrics

log = logging.getLogger(__name__)

PATIENCE = 2
"""Number of passes that may fail for lack of an answer before the status says so."""


class StatusWriter:
    """Writes the status of LoraAdapters and DistillJobs."""

    def __init__(self, api: Api, metrics: Metrics) -> None:
        self._api = api
        self._metrics = metrics

    async def write(
        self,
        resource: Resource,
        metadata: ObjectMeta,
        before: LoraAdapterStatus | DistillJobStatus,
        after: LoraAdapterStatus | DistillJobStatus,
    ) -> ObjectMeta:
        """Write a changed status, under the resourceVersion that it was decided on."""
        old = before.model_dump(mode="json", by_alias=True, exclude_none=True)
        new = after.model_dump(mode="json", by_alias=True, exclude_none=True)
        if old == new:
            return metadata
        removed: Manifest = {field: None for field in old if field not in new}
        patch: Manifest = {
            "metadata": {"resourceVersion": metadata.resource_version},
            "status": {**removed, **new},
        }
        written = await self._api.merge(
            resource,
            metadata.namespace,
            metadata.name,
            patch,
            subresource="status",
            # A job's samples need not come back each time.
            metadata_only=resource is DISTILL_JOBS,
        )
        if isinstance(before, DistillJobStatus) and isinstance(after, DistillJobStatus):
            self._metrics.job_written(metadata.namespace, metadata.creation_timestamp, before, after)
        return ObjectMeta.model_validate(written["metadata"])

    async def tell(self, key: Key, error: Exception, failures: int) -> bool:
        """Write why a pass failed into the object's status; the next successful pass replaces it. False if the object
        no longer exists. `failures` counts earlier failed passes since the last successful one.
        """
        if key.kind is Kind.LEASE:
            return True
        resource, status_of = (ADAPTERS, adapter_status) if key.kind is Kind.ADAPTER else (DISTILL_JOBS, job_status)
        try:
            found = await self._api.get(resource, key.namespace, key.name)
            if found is None:
                return False
            before = found.get("status") or {}
            # A failure that may pass in a moment is not written if the object has a status.
            if isinstance(error, Unavailable) and before and failures < PATIENCE:
                return True
            after = status_of(found, trouble_of(error), datetime.now(UTC))
            if all(isinstance(before, dict) and before.get(name) == value for name, value in after.items()):
                return True
            metadata: Manifest = {"resourceVersion": ObjectMeta.model_validate(found["metadata"]).resource_version}
            patch: Manifest = {"metadata": metadata, "status": after}
            await self._api.merge(resource, key.namespace, key.name, patch, subresource="status")
        except (ApiError, OperatorError) as again:
            log.warning("%s %s/%s: its status could not be written: %s", key.kind, key.namespace, key.name, again)
        return True
