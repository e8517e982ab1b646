"""Reading a document of samples as tools export them: a JSON list, JSON lines, or an object around the list."""

from __future__ import annotations

import json
from collections.abc import Iterator

from claas_crds.samples.checks import InvalidSamplesError, SampleError
from claas_crds.samples.forms import RepeatedFields, read_sample
from claas_crds.v1alpha1.training import DistillBatchItem

__all__ = ["InvalidSamplesError", "read_document"]

_WRAPPER = "samples"
_CONTAINERS = {
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    b"PK\x03\x04": "a zip archive or a spreadsheet: export it as JSON",
    b"PAR1": "a Parquet file: export it as JSON lines",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch it with git lfs pull",
}
_BETWEEN = " \t\r\n\ufeff"
"""Characters between JSON values: white space, and byte order marks from concatenated files."""


def read_document(data: bytes) -> list[DistillBatchItem]:
    """Reads the samples of a document, and checks each as far as possible without the model.

    Read are a JSON list of samples, `{"samples": [...]}`, and JSON lines (a sample each); in UTF-8, UTF-16 or
    UTF-32, with or without a byte order mark. A sample is an object with the fields of `DistillBatchItem`, or has
    its conversation as OpenAI's `messages` or ShareGPT's `conversations`.

    Raises:
        InvalidSamplesError: the document is unreadable, or samples are wrong. The message never quotes a text.
    """
    samples: list[DistillBatchItem] = []
    faults: list[SampleError] = []
    try:
        values = _sample_values(_decoded(data))
    except SampleError as error:
        values = []
        faults.append(error)
    for index, value in enumerate(values):
        try:
            samples.append(read_sample(index, value))
        except SampleError as error:
            faults.append(error)
    if faults:
        raise InvalidSamplesError(faults)
    return samples


def _decoded(data: bytes) -> str:
    for beginning, what in _CONTAINERS.items():
        if data.startswith(beginning):
            raise SampleError(None, "", f"the document is {what}")
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SampleError(
            None,
            "",
            f"the document is not {encoding.upper().replace('-SIG', '')} text (line {line}, byte {error.start});"
            " it may be in GBK, Shift JIS or Windows-1252: save it as UTF-8, for example with"
            " iconv -f GBK -t UTF-8",
        ) from None


def _sample_values(text: str) -> list[object]:
    try:
        values = list(_json_values(text))
    except (RecursionError, ValueError) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError(None, "", "not readable JSON: nested too deep, or a number too long") from None
    if len(values) == 1:
        values = _unwrapped(values[0])
    elif any(isinstance(value, list) for value in values):
        raise SampleError(None, "", "the document has several JSON lists; give one list, or one sample in each line")
    if not values:
        raise SampleError(None, "", "there are none: give a JSON list of at least one sample, or JSON lines")
    return values


def _unwrapped(value: object) -> list[object]:
    """The samples of a document that is one JSON value."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise SampleError(None, "", "must be a JSON list of at least one sample, or JSON lines")
    if _WRAPPER not in value:
        return [value]
    inner = value[_WRAPPER]
    if len(value) > 1:
        raise SampleError(
            None,
            "",
            "an object around the list must hold samples alone; settings belong in the DistillJob's spec.training",
        )
    if not isinstance(inner, list):
        raise SampleError(None, "", "must be a JSON list of at least one sample")
    return inner


def _json_values(text: str) -> Iterator[object]:
    """The JSON values in a text: one, or those of JSON lines."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    position = _after_gap(text, 0)
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise SampleError(None, "", _not_json(text, error)) from None
        yield value
        position = _after_gap(text, position)


def _after_gap(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BETWEEN:
        position += 1
    return position


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else RepeatedFields(found)


def _not_json(text: str, error: json.JSONDecodeError) -> str:
    before = text[: error.pos].rstrip(_BETWEEN)
    found = text[error.pos : error.pos + 1]
    if before.endswith(",") and found in ("]", "}"):
        why = "a comma before the closing bracket: remove it"
    elif found == "'":
        why = "texts stand in double quotes, not in single ones"
    elif text[error.pos : error.pos + 4] in ("None", "True", "Fals"):
        why = "a Python literal: write the file with json.dump"
    elif not found or error.msg.startswith("Unterminated"):
        why = "the document ends too early, or a quote is missing"
    else:
        # The parser's own words never hold the document's.
        why = error.msg.removesuffix(" at")
    place = f"line {error.lineno}, column {error.colno}"
    return f"not JSON at {place} ({why}); give a JSON list of samples, or JSON lines"
