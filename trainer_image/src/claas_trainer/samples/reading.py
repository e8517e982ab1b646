"""Reading the samples file and checking samples against the model. Messages name sample and field, never a text."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

from claas_crds.samples import documents as sample_documents
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_trainer.errors import InputError, SampleError


@dataclass(frozen=True)
class ModelLimits:
    """What the base model can take: token ids in 0..vocabulary_size-1, and so many tokens in all."""

    vocabulary_size: int
    context_tokens: int


def read_samples(path: Path) -> list[DistillBatchItem]:
    """Read and check a samples file. Raises InputError when there is no such file and SampleError otherwise."""
    try:
        data = _as_it_is_spelled(path).read_bytes()
    except OSError as error:
        raise InputError(f"samples_file: {path} can't be read ({type(error).__name__}); check the mount") from error
    try:
        return sample_documents.read_document(data)
    except sample_documents.SampleError as error:
        raise SampleError(error.place, error.message) from None


def _as_it_is_spelled(path: Path) -> Path:
    """The path in the Unicode form that the volume has: the same accents can be written in two ways."""
    forms = [path, *(Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))]
    return next((form for form in forms if form.exists()), path)


def check_against_model(index: int, sample: DistillBatchItem, limits: ModelLimits) -> None:
    """That the recorded token ids are the model's. Raises SampleError."""
    for field in ("prompt_token_ids", "response_token_ids"):
        ids: list[int] = getattr(sample, field)
        for position, token in enumerate(ids):
            if not 0 <= token < limits.vocabulary_size:
                raise SampleError(
                    f"samples[{index}].{field}[{position}]",
                    f"is outside the model's vocabulary (0 to {limits.vocabulary_size - 1}); record rollouts with the"
                    " adapter's own base model",
                )


def check_length(index: int, field: str, tokens: int, limits: ModelLimits) -> None:
    """That a prompt with its response fits the model's context. Raises SampleError."""
    if tokens > limits.context_tokens:
        raise SampleError(
            f"samples[{index}].{field}",
            f"is {tokens} tokens long with its response and the model's context is {limits.context_tokens};"
            " shorten or leave out this sample",
        )
