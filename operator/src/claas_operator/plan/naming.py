"""Names and labels of the objects that the operator makes. Names come from UIDs, so a job that is deleted and
applied again under the same name is a new job with children of its own."""

from __future__ import annotations

import hashlib
from datetime import datetime

from claas_crds import GROUP
from claas_kube.objects.meta import ObjectMeta

JOB_UID_LABEL = f"{GROUP}/job-uid"
"""Label of objects that take a step for a job; not of recovery pods."""
ENGINE_LABEL = f"{GROUP}/engine"
"""Label with the engine's name, on trainers and inference proxies: network policies choose by it."""
ADAPTER_UID_LABEL = f"{GROUP}/adapter-uid"
OWNER_KIND_LABEL = f"{GROUP}/owner-kind"
OWNER_NAME_ANNOTATION = f"{GROUP}/owner-name"
TRAINER_CONTAINER = "trainer"
"""Name of the trainer's container; any other container in the pod was added by others."""
OWNER_GENERATION_ANNOTATION = f"{GROUP}/owner-generation"
"""Annotation with the generation of the owner's spec that a trainer was created from."""
COMPANION_CONFIG_MAP = "claas-vllm-companion"
COMMON_LABELS = {"app.kubernetes.io/managed-by": "claas-operator", "app.kubernetes.io/part-of": "claas"}
TRAINER_LABELS = {
    **COMMON_LABELS,
    "app.kubernetes.io/name": "claas-trainer",
    "app.kubernetes.io/component": "trainer",
}
PROXY_LABELS = {
    **COMMON_LABELS,
    "app.kubernetes.io/name": "claas-inference-proxy",
    "app.kubernetes.io/component": "inference-proxy",
}

_LONGEST_PREFIX = 40


def _child_name(owner: ObjectMeta, suffix: str) -> str:
    unique = hashlib.sha256(owner.uid.encode()).hexdigest()[:8]
    prefix = owner.name.replace(".", "-")[:_LONGEST_PREFIX].rstrip("-")
    return f"{prefix}-{unique}-{suffix}"


def attempt_name(job: ObjectMeta, attempt: int) -> str:
    """Name of an attempt's batch Job, input Secret and pod prefix."""
    return _child_name(job, str(attempt))


def recovery_name(job: ObjectMeta, attempt: int, since: datetime | None) -> str:
    """Name of the batch Job of a recovery pod; each retry has another name."""
    return _child_name(job, f"{attempt}-found" if since is None else f"{attempt}-f{int(since.timestamp()):x}")


def init_name(adapter: ObjectMeta) -> str:
    """Name of the batch Job that makes the initial version."""
    return _child_name(adapter, "init")
