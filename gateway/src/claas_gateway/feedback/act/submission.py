"""Makes a batch's job, once, whatever dies when: samples first, then the job, whose name is the batch."""

from __future__ import annotations

from dataclasses import dataclass

from claas_gateway.directory.models import Adapter
from claas_gateway.feedback.act.volumes import SampleVolumes
from claas_gateway.feedback.plan.manifests import (
    job_manifest,
    owned_by_job,
    secret_manifest,
)
from claas_gateway.feedback.plan.samples import LARGEST_SECRET_BYTES
from claas_gateway.records import FeedbackBatch
from claas_kube.api import Api
from claas_kube.errors import ApiError, Conflict
from claas_kube.objects.resources import JobObject
from claas_kube.resources import DISTILL_JOBS, SECRETS

_PERMANENT = frozenset({400, 413, 422})
"""Statuses of the API server that the same request would meet again."""


class RefusedError(Exception):
    """The API server will never take the batch; the message says why, without samples."""


@dataclass(frozen=True)
class Submission:
    """Writes jobs and their samples."""

    api: Api
    volumes: SampleVolumes

    async def find(self, batch: FeedbackBatch) -> JobObject | None:
        """The batch's job, asked of the API server."""
        found = await self.api.get(DISTILL_JOBS, batch.namespace, batch.id)
        return JobObject.model_validate(found) if found is not None else None

    async def submit(self, batch: FeedbackBatch, adapter: Adapter, samples: bytes) -> str:
        """Make the job; its UID. Raises RefusedError."""
        claim = None
        try:
            if len(samples) <= LARGEST_SECRET_BYTES:
                await self.api.apply(SECRETS, batch.namespace, secret_manifest(batch, samples))
            else:
                claim = self.volumes.claim_for(adapter)
                if claim is None:
                    raise RefusedError(
                        f"its samples have {len(samples)} bytes, a Secret takes {LARGEST_SECRET_BYTES}, and the"
                        " adapter's volume is not mounted into the gateway"
                    )
                await self.volumes.write(claim, batch.id, samples)
            created = await self._create(batch, claim)
        except ApiError as error:
            if error.status in _PERMANENT:
                raise RefusedError(str(error)) from None
            raise
        if claim is None:
            await self.own(batch, created.metadata.uid)
        return created.metadata.uid

    async def own(self, batch: FeedbackBatch, job_uid: str) -> None:
        """Have the Secret go with the job."""
        try:
            patch = owned_by_job(batch, job_uid)
            await self.api.merge(SECRETS, batch.namespace, batch.id, patch, metadata_only=True)
        except ApiError as error:
            # Without a Secret there is a file, or the batch is accounted for by another replica.
            if error.status != 404:
                raise

    async def remove_samples(self, batch: FeedbackBatch) -> None:
        """Delete the Secret and the file of a batch; they may be gone already."""
        await self.volumes.remove(batch.id)
        found = await self.api.get(SECRETS, batch.namespace, batch.id)
        if found is not None:
            metadata = found["metadata"]
            assert isinstance(metadata, dict)
            await self.api.delete(SECRETS, batch.namespace, batch.id, uid=str(metadata["uid"]))

    async def _create(self, batch: FeedbackBatch, claim: str | None) -> JobObject:
        try:
            created = await self.api.create(DISTILL_JOBS, batch.namespace, job_manifest(batch, claim))
        except Conflict:
            found = await self.find(batch)
            if found is None:
                raise
            return found
        return JobObject.model_validate(created)
