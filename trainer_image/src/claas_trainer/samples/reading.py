"""Reads the samples file and checks samples against the model. Messages name sample and field and never quote a
text."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

from claas_crds.samples import documents as sample_documents
from claas_crds.samples.checks import SampleError
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_trainer.errors import InputError, InvalidSampleError


@dataclass(frozen=True)
class ModelLimits:
    """Limits of the base model: token ids in 0..vocabulary_size-1, and the context length in tokens."""

    vocabulary_size: int
    context_tokens: int


def read_samples(path: Path) -> list[DistillBatchItem]:
    """Reads and checks a samples file. Raises InputError if the file can't be read, InvalidSampleError for its
    content."""
    try:
        data = _as_it_is_spelled(path).read_bytes()
    except OSError as error:
        raise InputError(f"samples_file: {path} can't be read ({type(error).__name__}); check the mount") from error
    try:
        return sample_documents.read_document(data)
    except sample_documents.InvalidSamplesError as error:
        raise InvalidSampleError(error) from None


def _as_it_is_spelled(path: Path) -> Path:
    """The path in the Unicode form that the volume uses; the same accents have two forms."""
    forms = [path, *(Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))]
    return next((form for form in forms if form.exists()), path)


def check_against_model(index: int, sample: DistillBatchItem, limits: ModelLimits) -> None:
    """Checks that the recorded token ids are in the model's vocabulary. Raises SampleError."""
    for field in ("prompt_token_ids", "response_token_ids"):
        ids: list[int] = getattr(sample, field)
        for position, token in enumerate(ids):
            if not 0 <= token < limits.vocabulary_size:
                raise SampleError(
                    index,
                    f"{field}[{position}]",
                    f"is outside the model's vocabulary (0 to {limits.vocabulary_size - 1}); record rollouts with the"
                    " adapter's own base model",
                )


def check_length(index: int, field: str, tokens: int, limits: ModelLimits) -> None:
    """Checks that a prompt with its response fits the model's context. Raises SampleError."""
    if tokens > limits.context_tokens:
        raise SampleError(
            index,
            field,
            f"is {tokens} tokens long with its response and the model's context is {limits.context_tokens};"
            " shorten or leave out this sample",
        )
