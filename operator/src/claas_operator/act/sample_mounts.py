"""The volumes that bring samples which are not inline."""

from __future__ import annotations

from claas_contract.places import SAMPLES_DIRECTORY
from claas_crds.v1alpha1.distill_job import KeyReference, SamplesSource
from claas_kube.objects.meta import Manifest
from claas_operator.act.pod_volumes import Mount, claim_mount
from claas_operator.plan.samples import SAMPLES_FILE_NAME


def samples_mounts(source: SamplesSource) -> list[Mount]:
    """The volume that brings samples which are not inline."""
    if source.config_map_ref is not None:
        volume: Manifest = {"name": source.config_map_ref.name, "items": [_item(source.config_map_ref)]}
        return [Mount({"name": "claas-samples", "configMap": volume}, SAMPLES_DIRECTORY)]
    if source.secret_ref is not None:
        volume = {"secretName": source.secret_ref.name, "items": [_item(source.secret_ref)]}
        return [Mount({"name": "claas-samples", "secret": volume}, SAMPLES_DIRECTORY)]
    if source.file is not None:
        return [claim_mount("claas-samples", source.file.claim_name, SAMPLES_DIRECTORY, read_only=True)]
    return []


def _item(reference: KeyReference) -> Manifest:
    return {"key": reference.key, "path": SAMPLES_FILE_NAME}
