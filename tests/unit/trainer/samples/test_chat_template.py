"""Prompts are made as the server makes them, and what a template refuses names the sample and the cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from pydantic import JsonValue

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_trainer.errors import InputError, InvalidSampleError
from claas_trainer.model.hub_tokenizer import HubTokenizer
from claas_trainer.samples.chat_template import PromptOrigin, ServerChat
from claas_trainer.samples.prompt_turns import Chat
from claas_trainer.samples.reading import ModelLimits
from claas_trainer.samples.tokens import TokenisedBatch, tokenise
from tests.unit.trainer.chat_models import CHATML, KINDS, NO_SYSTEM, PIPES, Kind, chat_model

LIMITS = ModelLimits(vocabulary_size=400, context_tokens=100_000)
MODEL = chat_model(KINDS["chatml"])
TEXT = "my private words"


def item(**changes: object) -> DistillBatchItem:
    return DistillBatchItem.model_validate({"user_prompt": TEXT, "response": "ok", "feedback": "short"} | changes)


def made_by(server: ServerChat | None, model: HubTokenizer = MODEL) -> TokenisedBatch:
    return tokenise([item()], model, LIMITS, model.renderer(server))


def student(batch: TokenisedBatch) -> str:
    return MODEL.decode(batch.samples[0].student_prompt_ids)


def test_a_prompt_is_made_with_the_server_s_template_arguments() -> None:
    batch = made_by(ServerChat(arguments={"enable_thinking": False}))
    assert student(batch).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert MODEL.decode(batch.samples[0].teacher_prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    assert (batch.counts.server_prompts, batch.counts.template_prompts, batch.counts.recorded_prompts) == (1, 0, 0)


def test_a_prompt_is_made_with_the_server_s_own_template() -> None:
    assert student(made_by(ServerChat(template=PIPES))) == f"<|user|>\n{TEXT}<|end|>\n<|assistant|>\n"


def test_without_a_server_the_model_s_template_counts_and_says_so() -> None:
    batch = made_by(None)
    assert student(batch) == f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\n"
    assert (batch.counts.server_prompts, batch.counts.template_prompts) == (0, 1)


def test_a_server_that_does_not_tell_its_template_is_asked_for_tokens() -> None:
    def ask(chat: Chat, answer_next: bool, arguments: Mapping[str, JsonValue]) -> Sequence[int]:
        text = MODEL.tokenizer.apply_chat_template(
            [dict(turn) for turn in chat], chat_template=PIPES, tokenize=False, add_generation_prompt=answer_next
        )
        return MODEL.encode(str(text))

    batch = made_by(ServerChat(told=False, ask=ask))
    assert student(batch) == f"<|user|>\n{TEXT}<|end|>\n<|assistant|>\n"
    assert batch.counts.server_prompts == 1


def test_a_recorded_prompt_stays_as_it_is_whatever_the_server_would_make() -> None:
    ids = MODEL.encode(f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\n")
    renderer = MODEL.renderer(ServerChat(arguments={"enable_thinking": False}))
    batch = tokenise([item(prompt_token_ids=ids)], MODEL, LIMITS, renderer)
    assert batch.samples[0].student_prompt_ids == tuple(ids)
    assert (batch.counts.recorded_prompts, batch.counts.hints_inserted) == (1, 1)
    assert batch.samples[0].teacher_prompt_ids[-11:] == tuple(ids[-11:])


BROKEN: list[tuple[str, str, str]] = [
    ("syntax", "{% for m in messages %}{{ m.content }", "TemplateSyntaxError, line 1 of the template"),
    ("type", "{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "TypeError"),
    ("undefined", "{{ nothing.there }}", "UndefinedError"),
    ("no message", "always the same", "does not render the user's message"),
    ("division", "{{ 1 // 0 }}", "ZeroDivisionError"),
]


@pytest.mark.parametrize(("template", "said"), [each[1:] for each in BROKEN], ids=[each[0] for each in BROKEN])
def test_a_template_that_can_t_be_used_at_all_is_a_fault_of_the_model(template: str, said: str) -> None:
    model = chat_model(Kind(template, "<|im_end|>", ("<|im_start|>",)))
    with pytest.raises(InputError, match="chat template can't be used") as caught:
        made_by(None, model)
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND
    assert said in caught.value.message
    assert TEXT not in str(caught.value)


REFUSED: list[tuple[str, str, dict[str, object], str]] = [
    ("system role", NO_SYSTEM, {"system_prompt": TEXT}, "of system, user: System role is not supported"),
    (
        "by content",
        "{% for m in messages %}{% if 'private' in m.content %}{{ raise_exception(m.content) }}{% endif %}"
        "{{ m.content }}{% endfor %}",
        {},
        "of user: TemplateError",
    ),
    (
        "a type",
        CHATML + "{% if messages[0].role == 'system' %}{{ 1 + 'a' }}{% endif %}",
        {"system_prompt": TEXT},
        "TypeError",
    ),
    (
        "alternation",
        "{% for m in messages %}{% if loop.index0 % 2 != (m.role == 'assistant')|int %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}{{ m.content }}<|im_end|>{% endfor %}",
        {"messages": [{"role": "user", "content": TEXT}]},
        "of user, user: Roles must alternate",
    ),
]


@pytest.mark.parametrize(
    ("template", "changes", "said"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED]
)
def test_a_conversation_that_the_template_refuses_names_the_sample_and_the_cause(
    template: str, changes: dict[str, object], said: str
) -> None:
    model = chat_model(Kind(template, "<|im_end|>", ("<|im_start|>",)))
    good = item(user_prompt="hi")
    with pytest.raises(InvalidSampleError) as caught:
        tokenise([good, item(**changes)], model, LIMITS)
    assert caught.value.invalid.faults[0].place == "samples[1]"
    assert said in caught.value.message
    assert TEXT not in str(caught.value)


def test_of_several_named_templates_the_default_counts_and_without_one_the_names_are_told() -> None:
    model = chat_model(KINDS["chatml"])
    model.tokenizer.chat_template = {"default": CHATML, "tool_use": PIPES}
    assert made_by(None, model).counts.template_prompts == 1
    model.tokenizer.chat_template = {"rag": CHATML, "tool_use": PIPES}
    with pytest.raises(InputError, match=r"\(rag, tool_use\) and none is called default") as caught:
        made_by(None, model)
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND
    assert made_by(ServerChat(template="tool_use"), model).counts.server_prompts == 1


def test_prompts_say_by_whom_they_were_made() -> None:
    assert MODEL.renderer(None).origin is PromptOrigin.MODEL
    assert MODEL.renderer(ServerChat()).origin is PromptOrigin.SERVER
