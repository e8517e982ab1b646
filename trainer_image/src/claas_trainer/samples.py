"""Reading the samples file and checking every sample. Messages name the sample and the field, never a text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from claas_crds.training import DistillBatchItem
from claas_trainer.errors import InputError, SampleError

_ROUNDING = 1e-4
"""A log-probability may come out this far above 0 by rounding; it counts as 0 then."""
_TEXT_FIELDS = ("user_prompt", "response", "feedback", "system_prompt", "prompt")


@dataclass(frozen=True)
class ModelLimits:
    """What the base model can take: token ids in 0..vocabulary_size-1, and so many tokens in all."""

    vocabulary_size: int
    context_tokens: int


def read_samples(path: Path) -> list[DistillBatchItem]:
    """Read and parse a samples file. Raises InputError when there is no such file and SampleError otherwise."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SampleError("samples", "the file is not UTF-8 text; write it as a JSON list in UTF-8") from None
    except OSError as error:
        raise InputError(f"samples_file: {path} can't be read ({type(error).__name__}); check the mount") from None
    return parse_samples(text)


def parse_samples(text: str) -> list[DistillBatchItem]:
    """The samples of a JSON list. Raises SampleError."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise SampleError("samples", f"not JSON at {place}; give a JSON list of samples") from None
    except (RecursionError, ValueError):
        raise SampleError("samples", "not readable JSON: nested too deep, or a number too long") from None
    if not isinstance(document, list) or not document:
        raise SampleError("samples", "must be a JSON list of at least one sample")
    return [_parse(index, item) for index, item in enumerate(document)]


def _parse(index: int, item: object) -> DistillBatchItem:
    try:
        sample = DistillBatchItem.model_validate(item, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        raise SampleError(*_described(index, first["type"], first["loc"])) from None
    for field, message in _faults(sample):
        raise SampleError(f"samples[{index}].{field}", message)
    return sample


def _described(index: int, kind: str, location: tuple[int | str, ...]) -> tuple[str, str]:
    """Place and message of a value of the wrong shape; an unknown field's name may be private, so it isn't told."""
    known = ", ".join(DistillBatchItem.model_fields)
    if not location or location[0] not in DistillBatchItem.model_fields:
        what = "has a field that is not known" if kind == "extra_forbidden" else "must be a JSON object"
        return f"samples[{index}]", f"{what}; fields are {known}"
    place = f"samples[{index}].{location[0]}" + "".join(f"[{part}]" for part in location[1:] if isinstance(part, int))
    if kind == "missing":
        return place, "is missing; every sample needs user_prompt, response and feedback"
    return place, f"has the wrong type ({kind}); texts are strings, token ids integers, log-probabilities numbers"


def _faults(sample: DistillBatchItem) -> Iterator[tuple[str, str]]:
    """What is wrong with a sample for every model: field and message."""
    for field in _TEXT_FIELDS:
        text: str = getattr(sample, field)
        try:
            text.encode()
        except UnicodeEncodeError:
            yield field, "is not valid Unicode: it has half of a surrogate pair"
    for field in ("user_prompt", "response", "feedback"):
        if not getattr(sample, field).strip():
            yield field, "is empty; every sample needs user_prompt, response and feedback"
    if sample.response_logprobs and not sample.response_token_ids:
        yield "response_logprobs", "are given without response_token_ids; give both, or neither"
    if sample.response_logprobs and len(sample.response_logprobs) != len(sample.response_token_ids):
        yield (
            "response_logprobs",
            f"has {len(sample.response_logprobs)} values for {len(sample.response_token_ids)} response_token_ids;"
            " give one for each token",
        )
    for position, value in enumerate(sample.response_logprobs):
        if not math.isfinite(value):
            yield f"response_logprobs[{position}]", "is NaN or infinite; give the log-probability that was sampled"
        elif value > _ROUNDING:
            yield f"response_logprobs[{position}]", "is above 0; a log-probability is at most 0"


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
