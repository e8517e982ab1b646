"""How a job's samples reach its trainer: in its input Secret, or mounted from where they lie."""

from __future__ import annotations

from pydantic import TypeAdapter

from claas_crds.contract import INPUT_DIRECTORY, SAMPLES_DIRECTORY
from claas_crds.distill_job import LARGEST_INLINE_BYTES, KeyReference, SamplesSource
from claas_crds.training import DistillBatchItem
from claas_operator.core import Manifest
from claas_operator.pod_volumes import Mount, claim_mount

SAMPLES_FILE_NAME = "samples.json"
_SAMPLES = TypeAdapter(list[DistillBatchItem])


def samples_document(source: SamplesSource) -> str | None:
    """Inline samples as the JSON list a trainer reads; None when they lie elsewhere."""
    return None if source.inline is None else _SAMPLES.dump_json(source.inline, exclude_defaults=True).decode()


def input_error(source: SamplesSource) -> str | None:
    """Why the input Secret can't hold these samples; None when it can."""
    document = samples_document(source)
    if document is None or len(document.encode()) <= LARGEST_INLINE_BYTES:
        return None
    size = len(document.encode())
    return (
        f"spec.samples.inline: {size} bytes are more than the {LARGEST_INLINE_BYTES} that a trainer's input can hold:"
        " put the samples on a volume (spec.samples.file)"
    )


def samples_file(source: SamplesSource) -> str:
    """The path of the samples in the trainer's pod."""
    if source.inline is not None:
        return f"{INPUT_DIRECTORY}/{SAMPLES_FILE_NAME}"
    if source.file is not None:
        return f"{SAMPLES_DIRECTORY}/{source.file.path}"
    return f"{SAMPLES_DIRECTORY}/{SAMPLES_FILE_NAME}"


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
