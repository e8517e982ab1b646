"""Token ids of samples with a real tokenizer and its chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_trainer.errors import InputError, InvalidSampleError
from claas_trainer.messages.result import failure
from claas_trainer.model.hub_tokenizer import HubTokenizer, read_tokenizer
from claas_trainer.samples.chat_template import PromptOrigin, TemplateRenderer
from claas_trainer.samples.hindsight import HEADING
from claas_trainer.samples.reading import ModelLimits
from claas_trainer.samples.tokens import tokenise
from tests.builders.models import build_tiny_qwen3

LIMITS = ModelLimits(vocabulary_size=300, context_tokens=2048)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HubTokenizer:
    return read_tokenizer(folder)


def item(**changes: object) -> DistillBatchItem:
    return DistillBatchItem.model_validate(
        {"user_prompt": "Why?", "response": "Because.", "feedback": "kinder"} | changes
    )


def test_a_sample_written_by_hand_is_the_template_s_chat_and_ends_the_turn(tokenizer: HubTokenizer) -> None:
    batch = tokenise([item(system_prompt="Be brief.")], tokenizer, LIMITS)
    sample = batch.samples[0]
    assert tokenizer.decode(sample.student_prompt_ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(sample.response_ids) == "Because.<|im_end|>"
    assert sample.old_logprobs is None
    assert (batch.counts.total, batch.counts.recorded, batch.counts.reconstructed) == (1, 0, 1)


def test_earlier_turns_of_a_sample_written_by_hand_come_before_the_question(tokenizer: HubTokenizer) -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    sample = tokenise([item(messages=turns)], tokenizer, LIMITS).samples[0]
    assert tokenizer.decode(sample.student_prompt_ids) == (
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nI.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_recorded_ids_are_taken_as_they_are_even_where_the_tokenizer_would_choose_others(
    tokenizer: HubTokenizer,
) -> None:
    ids = [5, 6, 7]
    sampled = item(
        prompt_token_ids=tokenizer.encode("odd Why?"), response_token_ids=ids, response_logprobs=[-1, -2, 0]
    )
    batch = tokenise([sampled], tokenizer, LIMITS)
    assert batch.samples[0].response_ids == (5, 6, 7)
    assert batch.samples[0].student_prompt_ids == tuple(tokenizer.encode("odd Why?"))
    assert batch.samples[0].old_logprobs == (-1.0, -2.0, 0.0)
    assert batch.counts.recorded == 1
    assert batch.counts.response_tokens == 3


def test_the_teacher_sees_hindsight_after_the_last_user_turn_and_all_that_came_before(
    tokenizer: HubTokenizer,
) -> None:
    earlier = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    prompt = f"{earlier}<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    sample = tokenise([item(prompt=prompt)], tokenizer, LIMITS).samples[0]
    teacher = tokenizer.decode(sample.teacher_prompt_ids)
    assert tokenizer.decode(sample.student_prompt_ids) == prompt
    assert teacher.startswith(f"{earlier}<|im_start|>user\nWhy?\n\n{HEADING}")
    assert teacher.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert "kinder" in teacher


def test_a_recorded_prompt_that_hides_the_user_s_text_gives_a_teacher_prompt_made_anew(
    tokenizer: HubTokenizer,
) -> None:
    sample = tokenise([item(prompt="something else", system_prompt="S")], tokenizer, LIMITS).samples[0]
    assert tokenizer.decode(sample.student_prompt_ids) == "something else"
    teacher = tokenizer.decode(sample.teacher_prompt_ids)
    assert teacher.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nWhy?\n\n")


def test_a_hinted_prompt_that_is_too_long_for_the_model_names_the_sample(tokenizer: HubTokenizer) -> None:
    with pytest.raises(InvalidSampleError) as caught:
        tokenise([item(), item(feedback="long " * 40)], tokenizer, ModelLimits(300, 220))
    assert caught.value.invalid.faults[0].place == "samples[1].feedback"


def test_every_sample_that_does_not_fit_the_model_is_named(tokenizer: HubTokenizer) -> None:
    batch = [item(response_token_ids=[1, 300]), item(), item(feedback="long " * 40)]
    with pytest.raises(InvalidSampleError, match=r"samples\[0\].response_token_ids\[1\]: .* \(2 samples are wrong\)"):
        tokenise(batch, tokenizer, ModelLimits(300, 220))
    with pytest.raises(InvalidSampleError) as caught:
        tokenise(batch, tokenizer, ModelLimits(300, 220))
    told = failure(caught.value)
    assert told.reason is FailureReason.INVALID_SAMPLE
    assert [each.index for each in told.invalid_samples] == [0, 2]
    assert told.invalid_samples[1].message.startswith("feedback: is ")


def test_a_model_without_a_chat_template_is_not_usable(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    without = read_tokenizer(tmp_path)
    with pytest.raises(InputError, match="chat template") as caught:
        tokenise([item()], without, LIMITS)
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND
    told = TemplateRenderer(
        without.tokenizer, PromptOrigin.SERVER, "{% for m in messages %}{{ m.content }};{% endfor %}"
    )
    assert without.decode(tokenise([item()], without, LIMITS, told).samples[0].student_prompt_ids) == "Why?;"
