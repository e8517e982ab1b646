"""Checks of samples that do not depend on the model. Messages name the sample and the field, and never quote a
text."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence

from claas_crds.v1alpha1.step import MOST_INVALID_SAMPLES, InvalidSample
from claas_crds.v1alpha1.training import DistillBatchItem

_ROUNDING = 1e-4
"""Rounding may put a log-probability this far above 0; it counts as 0 then."""
_STAND_IN = -9999.0
"""vLLM's placeholder for a missing log-probability, because JSON has no infinity."""
TEXT_FIELDS = ("user_prompt", "response", "feedback", "correction", "system_prompt", "prompt")
NEEDS = "every sample needs user_prompt, response, and feedback or correction (the better answer)"
_BLANK_CATEGORIES = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
_FILLERS = frozenset("\u115f\u1160\u2800\u3164\uffa0") | {chr(code) for code in range(0xFE00, 0xFE10)}
"""Letters, symbols and selectors that are invisible by themselves."""


class SampleError(ValueError):
    """A sample, or the document that contains it, is invalid.

    `index` is the sample's place in the batch, None for the document as a whole; `field` its field, empty for the
    sample as a whole; `message` says what is wrong and what to do, and never holds a text.
    """

    def __init__(self, index: int | None, field: str, message: str) -> None:
        sample = "samples" if index is None else f"samples[{index}]"
        self.place = f"{sample}.{field}" if field else sample
        super().__init__(f"{self.place}: {message}")
        self.index = index
        self.field = field
        self.message = message


class InvalidSamplesError(ValueError):
    """Some samples of a batch are invalid, or the document that contains them is.

    `faults` has one for each invalid sample, in the batch's order.
    """

    def __init__(self, faults: Sequence[SampleError]) -> None:
        several = f" ({len(faults)} samples are wrong)" if len(faults) > 1 else ""
        super().__init__(f"{faults[0]}{several}")
        self.faults = tuple(faults)

    @property
    def named(self) -> list[InvalidSample]:
        """The first invalid samples, as a status names them."""
        return [
            InvalidSample(index=fault.index, message=f"{fault.field or 'sample'}: {fault.message}")
            for fault in self.faults[:MOST_INVALID_SAMPLES]
            if fault.index is not None
        ]


def is_blank(text: str) -> bool:
    """Whether a text is invisible: white space, control and format characters (such as zero-width ones), and
    fillers."""
    return all(each in _FILLERS or unicodedata.category(each) in _BLANK_CATEGORIES for each in text)


def check_sample(index: int, sample: DistillBatchItem) -> None:
    """Raises SampleError for the first fault of a sample that does not depend on the model."""
    for field, message in _faults(sample):
        raise SampleError(index, field, message)


def _faults(sample: DistillBatchItem) -> Iterator[tuple[str, str]]:
    texts = {field: str(getattr(sample, field)) for field in TEXT_FIELDS}
    texts |= {f"messages[{place}].content": turn.content for place, turn in enumerate(sample.messages)}
    for field, text in texts.items():
        if any("\ud800" <= each <= "\udfff" for each in text):
            yield field, "is not valid Unicode: it has half of a surrogate pair"
        if "\0" in text:
            yield field, "has a NUL character (U+0000), which no chat has; remove it"
    learned_from = [field for field in ("feedback", "correction") if texts[field]] or ["feedback"]
    for field in ("user_prompt", "response", *learned_from):
        if is_blank(texts[field]):
            yield field, f"is empty, or has nothing that can be seen; {NEEDS}"
    yield from _logprob_faults(sample)


def _logprob_faults(sample: DistillBatchItem) -> Iterator[tuple[str, str]]:
    if sample.response_logprobs and not sample.response_token_ids:
        yield "response_logprobs", "are given without response_token_ids; give both, or neither"
    if sample.response_logprobs and len(sample.response_logprobs) != len(sample.response_token_ids):
        yield (
            "response_logprobs",
            f"has {len(sample.response_logprobs)} values for {len(sample.response_token_ids)} response_token_ids;"
            " give one for each token",
        )
    for position, value in enumerate(sample.response_logprobs):
        field = f"response_logprobs[{position}]"
        if not math.isfinite(value):
            yield field, "is NaN or infinite; give the log-probability that was sampled"
        elif value > _ROUNDING:
            yield field, "is above 0; a log-probability is at most 0"
        elif value <= _STAND_IN:
            yield (
                field,
                "is -9999 or less, which vLLM writes where it has no log-probability; leave response_logprobs out"
                " for this sample (its importance ratio is 1 then)",
            )
