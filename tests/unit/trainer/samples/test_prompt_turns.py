"""The hint goes to the end of the user's last turn, whatever template rendered it and whatever stands around it."""

from __future__ import annotations

import itertools
import unicodedata
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claas_crds.v1alpha1.training import DistillBatchItem
from claas_trainer.errors import InvalidSampleError
from claas_trainer.model.hub_tokenizer import HubTokenizer
from claas_trainer.samples.hindsight import HEADING, SEPARATOR, hindsight_block
from claas_trainer.samples.prompt_turns import Chat
from claas_trainer.samples.reading import ModelLimits
from claas_trainer.samples.tokens import TokenisedBatch, tokenise
from tests.unit.trainer.chat_models import KINDS, PIPES, Kind, chat_model

MODELS = {name: chat_model(kind) for name, kind in KINDS.items()}
LIMITS = ModelLimits(vocabulary_size=400, context_tokens=100_000)
HINT = SEPARATOR + hindsight_block("be short")
TEXTS = st.text(alphabet="hi s?\n.aeé답", min_size=1, max_size=12).filter(lambda text: bool(text.strip()))


def turn(role: str, content: str) -> dict[str, object]:
    return {"role": role, "content": content}


def render(model: HubTokenizer, chat: Chat, **arguments: bool) -> str:
    return str(
        model.tokenizer.apply_chat_template(
            [dict(each) for each in chat], tokenize=False, add_generation_prompt=True, **arguments
        )
    )


def batch_of(model: HubTokenizer, recorded: str, user_prompt: str, **fields: object) -> TokenisedBatch:
    item = DistillBatchItem.model_validate(
        {
            "user_prompt": user_prompt,
            "response": "ok",
            "feedback": "be short",
            "prompt_token_ids": model.encode(recorded),
            **fields,
        }
    )
    return tokenise([item], model, LIMITS)


def teacher_text(model: HubTokenizer, batch: TokenisedBatch) -> str:
    return model.decode(batch.samples[0].teacher_prompt_ids)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=20, deadline=None)
@given(
    earlier=st.lists(st.tuples(TEXTS, TEXTS), max_size=2),
    question=TEXTS,
    system=st.none() | TEXTS,
    tells_system=st.booleans(),
)
def test_a_recorded_prompt_gets_the_hint_as_the_template_would_have_rendered_it(
    name: str, earlier: list[tuple[str, str]], question: str, system: str | None, tells_system: bool
) -> None:
    model = MODELS[name]
    before = [turn("system", system)] if system else []
    for asked, answered in earlier:
        before += [turn("user", asked), turn("assistant", answered)]
    plain = render(model, [*before, turn("user", question)])
    trims = "trim" in KINDS[name].template
    shown = question.strip() if trims else question
    hinted = render(model, [*before, turn("user", shown + HINT)])
    batch = batch_of(model, plain, question, **({"system_prompt": system} if system and tells_system else {}))
    assert batch.counts.hints_inserted == 1
    assert batch.samples[0].student_prompt_ids == tuple(model.encode(plain))
    assert batch.samples[0].teacher_prompt_ids == tuple(model.encode(hinted))


CHATML = MODELS["chatml"]
WEATHER = (
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<tool_call>"
    '{"name": "echo", "arguments": {"text": "hi"}}</tool_call><|im_end|>\n'
)
RESULT = "<|im_start|>user\n<tool_response>\nthis is it: hi\n</tool_response><|im_end|>\n"
ANSWER = "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "after", [RESULT, RESULT * 2, RESULT + WEATHER[len("<|im_start|>user\nhi<|im_end|>\n") :] + RESULT]
)
def test_the_hint_goes_to_the_user_s_turn_and_not_into_tool_calls_and_results_after_it(after: str) -> None:
    batch = batch_of(CHATML, WEATHER + after + ANSWER, "hi")
    assert teacher_text(CHATML, batch) == WEATHER.replace("hi<", f"hi{HINT}<", 1) + after + ANSWER
    assert batch.counts.hints_inserted == 1


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>user\nsomething else: hi<|im_end|>\n" + ANSWER,
        "<|im_start|>user\nhi there<|im_end|>\n" + ANSWER,
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n"
        + ANSWER,
        "hi" + ANSWER,
        "<|im_start|>system\nhi<|im_end|>\n" + ANSWER,
    ],
)
def test_a_message_that_is_not_the_user_s_last_turn_is_not_taken_for_it(prompt: str) -> None:
    batch = batch_of(CHATML, prompt, "hi")
    assert (batch.counts.hints_inserted, batch.counts.rebuilt_conversations, batch.rebuilt) == (0, 1, (0,))
    assert teacher_text(CHATML, batch) == f"<|im_start|>user\nhi{HINT}<|im_end|>\n{ANSWER}"


def test_a_message_is_found_after_tool_definitions_that_the_template_put_into_its_turn() -> None:
    tools = 'Answer with a call of one of these.\n\n{"name": "echo"}\n\n'
    prompt = f"<|im_start|>user\n{tools}hi<|im_end|>\n{ANSWER}"
    batch = batch_of(CHATML, prompt, "hi", system_prompt="Be kind.")
    assert teacher_text(CHATML, batch) == prompt.replace("hi<", f"hi{HINT}<")


@pytest.mark.parametrize("question", ["hi", "i", "im", "user", "think", "assistant", "<think>"])
def test_a_short_message_that_stands_inside_words_and_tags_is_found_as_a_turn(question: str) -> None:
    chat = [turn("system", "this is it"), turn("user", question)]
    prompt = render(CHATML, chat, enable_thinking=False)
    assert "<think>" in prompt
    expected = prompt.replace(f"user\n{question}<|im_end|>", f"user\n{question}{HINT}<|im_end|>")
    assert teacher_text(CHATML, batch_of(CHATML, prompt, question)) == expected


Form = Literal["NFC", "NFD"]


@pytest.mark.parametrize("name", ["chatml", "pipes"])
@pytest.mark.parametrize("recorded", ["NFC", "NFD"])
@pytest.mark.parametrize("told", ["NFC", "NFD"])
def test_a_message_is_found_in_another_unicode_form(name: str, recorded: Form, told: Form) -> None:
    model, question = MODELS[name], "déjà vu 한글?"
    shown = unicodedata.normalize(recorded, question)
    prompt = render(model, [turn("system", "café é"), turn("user", shown)])
    batch = batch_of(model, prompt, unicodedata.normalize(told, question))
    assert batch.counts.hints_inserted == 1
    assert teacher_text(model, batch) == model.decode(model.encode(prompt)).replace("?", f"?{HINT}", 1)


def test_a_template_may_trim_a_message_together_with_the_system_prompt_before_it() -> None:
    template = (
        "{% set system = messages[0].content ~ '<</SYS>>\\n\\n' if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
        "[INST] {{ ((system if loop.first else '') ~ m.content) | trim }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    )
    model = chat_model(Kind(template, "</s>", ("[INST]", "[/INST]")))
    prompt = render(model, [turn("system", "Be kind."), turn("user", "  hi ")])
    batch = batch_of(model, prompt, "  hi ")
    assert batch.counts.hints_inserted == 1
    assert teacher_text(model, batch) == prompt.replace("  hi", "  hi" + HINT)


def test_a_prompt_given_as_text_alone_gets_the_hint_too() -> None:
    prompt = WEATHER + RESULT + ANSWER
    batch = batch_of(CHATML, prompt, "hi", prompt_token_ids=[], prompt=prompt)
    assert batch.counts.hints_inserted == 1
    assert batch.samples[0].student_prompt_ids == tuple(CHATML.encode(prompt))


def test_recorded_tokens_stay_as_they_are_in_the_teacher_s_prompt_too() -> None:
    # The answer before is tokens that the tokenizer would never choose: "t", "h" where it has "th".
    t, h = CHATML.encode("t")[0], CHATML.encode("h")[0]
    head = CHATML.encode("<|im_start|>assistant\n")
    odd = [*head, t, h, *CHATML.encode("<|im_end|>\n")]
    ids = odd + CHATML.encode("<|im_start|>user\nhi<|im_end|>\n" + ANSWER)
    batch = batch_of(CHATML, "", "hi", prompt_token_ids=ids)
    teacher = batch.samples[0].teacher_prompt_ids
    assert batch.counts.hints_inserted == 1
    assert teacher[: len(odd)] == tuple(odd)
    assert CHATML.decode(teacher).count(HEADING) == 1


@pytest.mark.parametrize("question", ["a 你好", "🙂🙂🙂", "가나다라마바사", "é?"])
def test_recorded_tokens_stay_where_several_of_them_are_one_letter(question: str) -> None:
    # While such a run has no end, its tokens are shown as a sign each, of whole letters before it too.
    model = MODELS["marked words"]
    ids = tuple(model.encode(render(model, [turn("user", question)])))
    batch = batch_of(model, "", question, prompt_token_ids=list(ids))
    teacher = batch.samples[0].teacher_prompt_ids
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, teacher, strict=False))
    end = len(list(same))
    assert model.decode(ids[:end]).endswith(question)
    assert teacher[len(teacher) - len(ids) + end :] == ids[end:]


def test_a_template_that_marks_the_user_s_turn_when_a_request_switches_thinking_off_is_known_too() -> None:
    mark = "{{ '/nothink' if enable_thinking is defined and not enable_thinking else '' }}"
    model = chat_model(Kind(PIPES.replace("{{ m.content }}", "{{ m.content }}" + mark), "<|end|>", ("<|user|>",)))
    prompt = render(model, [turn("user", "hi")], enable_thinking=False)
    assert teacher_text(model, batch_of(model, prompt, "hi")) == prompt.replace("/nothink", f"{HINT}/nothink")


def test_a_rebuilt_conversation_keeps_earlier_turns_and_the_thinking_setting() -> None:
    prompt = render(CHATML, [turn("user", "other")], enable_thinking=False)
    turns = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    batch = batch_of(CHATML, prompt, "hi", system_prompt="S", messages=turns)
    assert teacher_text(CHATML, batch) == render(
        CHATML, [turn("system", "S"), *turns, turn("user", "hi" + HINT)], enable_thinking=False
    )


def test_a_recorded_prompt_can_be_required() -> None:
    def refused(**changes: object) -> InvalidSampleError:
        fields: dict[str, object] = {"user_prompt": "hi", "response": "ok", "feedback": "be short"}
        item = DistillBatchItem.model_validate(fields | changes)
        good = DistillBatchItem.model_validate(fields | {"prompt": WEATHER + ANSWER})
        with pytest.raises(InvalidSampleError) as caught:
            tokenise([good, item], CHATML, LIMITS, require_recorded_prompt=True)
        return caught.value

    assert refused().invalid.faults[0].place == "samples[1].prompt_token_ids"
    error = refused(prompt_token_ids=CHATML.encode("<|im_start|>user\nprivate<|im_end|>\n" + ANSWER))
    assert error.invalid.faults[0].place == "samples[1].user_prompt"
    assert "private" not in str(error)
