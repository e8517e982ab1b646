"""The DistillJob of a batch, and the Secret with its samples, as manifests."""

from __future__ import annotations

import base64

from pydantic import JsonValue

from claas_crds import API_VERSION
from claas_crds.v1alpha1.distill_job import KIND
from claas_gateway.records import FeedbackBatch
from claas_kube.objects.meta import Manifest

GATEWAY_LABEL = "claas.dev/gateway"
"""On the gateway's DistillJobs: `true`."""
BATCH_LABEL = "claas.dev/feedback-batch"
"""On a batch's DistillJob and its Secret: the batch."""
SAMPLES_KEY = "samples.json"
TTL_SECONDS = 3 * 86_400
"""How long a finished job stays: a gateway that was away for less finds out how it ended."""
SAMPLES_FOLDER = ".claas-gateway-samples"
"""Folder of large batches' samples, below a volume's root."""


def job_manifest(batch: FeedbackBatch, file_claim: str | None) -> Manifest:
    """The DistillJob. `file_claim`: the claim with the samples, if they do not lie in a Secret."""
    samples: Manifest = {"secretRef": {"name": batch.id, "key": SAMPLES_KEY}}
    if file_claim is not None:
        samples = {"file": {"claimName": file_claim, "path": f"{SAMPLES_FOLDER}/{file_name(batch.id)}"}}
    spec: Manifest = {
        "adapterRef": {"name": batch.adapter},
        "samples": samples,
        "ttlSecondsAfterFinished": TTL_SECONDS,
    }
    if batch.training:
        spec["training"] = dict(batch.training)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": _metadata(batch, {GATEWAY_LABEL: "true"}),
        "spec": spec,
    }


def secret_manifest(batch: FeedbackBatch, samples: bytes) -> Manifest:
    """The Secret with the samples."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(batch, {}),
        "type": "Opaque",
        "data": {SAMPLES_KEY: base64.b64encode(samples).decode()},
    }


def owned_by_job(batch: FeedbackBatch, job_uid: str) -> Manifest:
    """A patch of the Secret: it goes when the job goes."""
    owner: Manifest = {"apiVersion": API_VERSION, "kind": KIND, "name": batch.id, "uid": job_uid}
    return {"metadata": {"ownerReferences": [owner]}}


def file_name(batch_id: str) -> str:
    """Name of the file with a batch's samples."""
    return f"{batch_id}.jsonl"


def _metadata(batch: FeedbackBatch, labels: dict[str, JsonValue]) -> Manifest:
    named: Manifest = {"app.kubernetes.io/managed-by": "claas-gateway", BATCH_LABEL: batch.id, **labels}
    return {"name": batch.id, "namespace": batch.namespace, "labels": named}
