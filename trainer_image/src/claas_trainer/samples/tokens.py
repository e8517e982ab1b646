"""From checked samples to token ids: the student's prompt, the teacher's prompt with hindsight, the response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from claas_contract.engine import TokenisedSample
from claas_crds.samples.checks import InvalidSamplesError, SampleError
from claas_crds.v1alpha1.step import SampleCounts
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_trainer.errors import InvalidSampleError, not_found
from claas_trainer.samples.chat_template import ChatRenderer, ChatTemplateError, PromptOrigin, TemplateRenderer
from claas_trainer.samples.prompts import Prompts, TeacherPrompt
from claas_trainer.samples.reading import ModelLimits, check_against_model, check_length
from claas_trainer.samples.user_text import ControlTextError, Piece


class ChatTokenizer(Protocol):
    """The interface of a tokenizer for samples."""

    @property
    def end_of_turn_ids(self) -> frozenset[int]:
        """Tokens that end generation."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are never text."""

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Tokens that a text can spell, by spelling: special tokens, thinking tags and, with some tokenizers,
        ordinary text such as line breaks."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Adds no special tokens; those spelled in the text are encoded as such."""

    def encode_pieces(self, pieces: Sequence[Piece], hidden: frozenset[int]) -> list[int]:
        """Token ids of the pieces as one text. No token of `hidden` results from a user's piece. Raises
        ControlTextError."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""

    def own_template(self) -> TemplateRenderer:
        """The model's own chat template. Raises InputError."""


@dataclass(frozen=True)
class TokenisedBatch:
    """The tokenised batch, in the samples' order. `rebuilt`: indices of samples whose teacher prompt is rebuilt from
    texts instead of the recorded prompt."""

    samples: tuple[TokenisedSample, ...]
    counts: SampleCounts
    rebuilt: tuple[int, ...] = ()


def tokenise(
    items: Sequence[DistillBatchItem],
    tokenizer: ChatTokenizer,
    limits: ModelLimits,
    renderer: ChatRenderer | None = None,
    *,
    require_recorded_prompt: bool = False,
) -> TokenisedBatch:
    """Tokenises all samples. Recorded token ids are used unchanged.

    `renderer` renders prompts that were not recorded: as the server does if one is known, or else with the model's
    own template. `require_recorded_prompt` refuses samples that would need it.

    Raises InvalidSampleError for samples that do not fit the model, InputError for an unusable template.
    """
    try:
        prompts = Prompts(tokenizer, renderer or tokenizer.own_template())
    except ChatTemplateError as error:
        raise not_found(f"the chat template can't be used: {error.message}") from None
    samples, origins, teachers = [], [], []
    faults: list[SampleError] = []
    for index, item in enumerate(items):
        try:
            check_against_model(index, item, limits)
            sample, origin, teacher = _tokenise(index, item, prompts, require_recorded_prompt)
            _check_lengths(index, item, sample, limits)
        except ChatTemplateError as error:
            if error.by_itself:
                raise not_found(f"the chat template can't be used: {error.message}") from None
            faults.append(SampleError(index, "", f"{error.message}; record the prompt (prompt_token_ids)"))
            continue
        except SampleError as error:
            faults.append(error)
            continue
        samples.append(sample)
        origins.append(origin)
        teachers.append(teacher)
    if faults:
        raise InvalidSampleError(InvalidSamplesError(faults))
    rebuilt = tuple(index for index, teacher in enumerate(teachers) if teacher is TeacherPrompt.REBUILT)
    return TokenisedBatch(tuple(samples), _counts(items, samples, origins, len(rebuilt)), rebuilt)


def _tokenise(
    index: int, item: DistillBatchItem, prompts: Prompts, require_recorded_prompt: bool
) -> tuple[TokenisedSample, PromptOrigin, TeacherPrompt]:
    recorded = bool(item.prompt_token_ids or item.prompt)
    if require_recorded_prompt and not recorded:
        raise SampleError(
            index,
            "prompt_token_ids",
            "is missing, and training.require_recorded_prompt is set; record the prompt with the answer",
        )
    student = prompts.student(item)
    try:
        teacher, how = prompts.teacher(item)
    except ControlTextError:
        raise SampleError(index, _hint_field(item), _CONTROL_TEXT) from None
    if require_recorded_prompt and how is TeacherPrompt.REBUILT:
        raise SampleError(
            index,
            "user_prompt",
            "is not the last message of a user in the recorded prompt, and training.require_recorded_prompt is set;"
            " give that message as it was sent",
        )
    try:
        response = item.response_token_ids or prompts.response(item.response)
    except ControlTextError:
        raise SampleError(index, "response", _CONTROL_TEXT) from None
    # Rounding may put a value slightly above 0.
    logprobs = tuple(min(value, 0.0) for value in item.response_logprobs)
    sample = TokenisedSample(
        student_prompt_ids=tuple(student),
        teacher_prompt_ids=tuple(teacher),
        response_ids=tuple(response),
        old_logprobs=logprobs or None,
        version=item.version if item.response_token_ids and not logprobs else None,
    )
    return sample, PromptOrigin.RECORDED if recorded else prompts.origin, how


_CONTROL_TEXT = "spells a control token that this tokenizer can't read as text; spell it differently"


def _hint_field(item: DistillBatchItem) -> str:
    """The field that stands for the hindsight in errors: the longer one."""
    return "correction" if len(item.correction) > len(item.feedback) else "feedback"


def _check_lengths(index: int, item: DistillBatchItem, sample: TokenisedSample, limits: ModelLimits) -> None:
    if not sample.response_ids:
        raise SampleError(index, "response", "has no tokens")
    for field, prompt in (("user_prompt", sample.student_prompt_ids), (_hint_field(item), sample.teacher_prompt_ids)):
        if not prompt:
            raise SampleError(index, field, "has no tokens")
        check_length(index, field, len(prompt) + len(sample.response_ids), limits)


def _counts(
    items: Sequence[DistillBatchItem],
    samples: Sequence[TokenisedSample],
    origins: Sequence[PromptOrigin],
    rebuilt: int,
) -> SampleCounts:
    recorded = sum(bool(item.response_token_ids and item.response_logprobs) for item in items)
    computed = sum(sample.version is not None for sample in samples)
    made = Counter(origins)
    return SampleCounts(
        total=len(items),
        recorded=recorded,
        computed=computed,
        reconstructed=len(items) - recorded - computed,
        response_tokens=sum(len(sample.response_ids) for sample in samples),
        recorded_prompts=made[PromptOrigin.RECORDED],
        server_prompts=made[PromptOrigin.SERVER],
        template_prompts=made[PromptOrigin.MODEL],
        hints_inserted=made[PromptOrigin.RECORDED] - rebuilt,
        rebuilt_conversations=rebuilt,
    )
