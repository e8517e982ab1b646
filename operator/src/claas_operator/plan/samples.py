"""How a job's samples reach its trainer: in its input Secret, or mounted from their source."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter

from claas_contract.places import INPUT_DIRECTORY, SAMPLES_DIRECTORY
from claas_crds.samples.documents import InvalidSamplesError, read_document
from claas_crds.v1alpha1.distill_job import LARGEST_INLINE_BYTES, SamplesSource
from claas_crds.v1alpha1.step import InvalidSample
from claas_crds.v1alpha1.training import DistillBatchItem

SAMPLES_FILE_NAME = "samples.json"
_SAMPLES = TypeAdapter(list[DistillBatchItem])


@dataclass(frozen=True, slots=True)
class SamplesFault:
    """Samples are wrong."""

    message: str
    """The first one's place and what is wrong with it, and how many are."""
    samples: tuple[InvalidSample, ...] = ()
    """The wrong samples, as the status names them; none if the document can't be read."""


@dataclass(frozen=True, slots=True)
class InlineSamples:
    """Problem with inline samples; None: none."""

    too_large: str | None = None
    """No trainer's input can be made of them."""
    invalid: SamplesFault | None = None
    """Some of them are wrong."""


def samples_document(source: SamplesSource) -> str | None:
    """Inline samples as the JSON list that a trainer reads; None if they are not inline."""
    return None if source.inline is None else _SAMPLES.dump_json(source.inline, exclude_defaults=True).decode()


def input_error(source: SamplesSource) -> str | None:
    """Why the input Secret can't hold these samples; None if it can."""
    document = samples_document(source)
    if document is None or len(document.encode()) <= LARGEST_INLINE_BYTES:
        return None
    size = len(document.encode())
    return (
        f"spec.samples.inline: {size} bytes are more than the {LARGEST_INLINE_BYTES} that a trainer's input can hold:"
        " put the samples on a volume (spec.samples.file)"
    )


def check_inline(source: SamplesSource) -> InlineSamples:
    """Look at samples that stand in the job itself."""
    document = samples_document(source)
    if document is None:
        return InlineSamples()
    too_large = input_error(source)
    if too_large is not None:
        return InlineSamples(too_large=too_large)
    return InlineSamples(invalid=document_fault(document.encode("utf-8", "surrogatepass")))


def document_fault(data: bytes) -> SamplesFault | None:
    """Fault of a document of samples, without quoting it; None if there is none."""
    try:
        read_document(data)
    except InvalidSamplesError as error:
        return SamplesFault(str(error), tuple(error.named))
    return None


def samples_file(source: SamplesSource) -> str:
    """The path of the samples in the trainer's pod."""
    if source.inline is not None:
        return f"{INPUT_DIRECTORY}/{SAMPLES_FILE_NAME}"
    if source.file is not None:
        return f"{SAMPLES_DIRECTORY}/{source.file.path}"
    return f"{SAMPLES_DIRECTORY}/{SAMPLES_FILE_NAME}"
