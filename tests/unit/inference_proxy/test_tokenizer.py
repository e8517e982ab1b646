"""Prompts are what the trainer makes of the same messages; texts are those of the tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_inference_proxy.errors import ModelFilesError, RefusalError
from claas_inference_proxy.prompts.conversation import Message, normalised
from claas_inference_proxy.prompts.tokenizer import SamplingDefaults, Tokenizer, read_tokenizer
from claas_trainer.samples.hindsight import as_chat, conversation
from tests.unit.inference_proxy.conftest import Make
from tests.unit.trainer.chat_models import CHATML, KINDS, NO_SYSTEM, Kind, chat_model

PARTS = Kind(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part.text }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "<|im_end|>",
    ("<|im_start|>",),
)
TOOLS = Kind("{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}" + CHATML, "<|im_end|>")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer_next", [True, False])
def test_a_prompt_is_the_trainer_s(kind: str, answer_next: bool, make_tokenizer: Make) -> None:
    model = chat_model(KINDS[kind])
    turns = as_chat(conversation("What colour is it?", "Be short."))
    ours = make_tokenizer(KINDS[kind])
    assert not ours.takes_parts
    text = ours.render(normalised([{**turn} for turn in turns], as_parts=False), answer_next=answer_next)
    assert text == model.own_template().render(turns, answer_next=answer_next)
    assert ours.encode(text, special=False) == model.encode(text)


def test_a_template_that_reads_parts_gets_them(make_tokenizer: Make) -> None:
    ours = make_tokenizer(PARTS)
    assert ours.takes_parts
    messages = normalised([{"role": "user", "content": "It is blue."}], as_parts=ours.takes_parts)
    assert ours.render(messages) == "<|im_start|>user\nIt is blue.<|im_end|>\n<|im_start|>assistant\n"


def test_arguments_tools_and_an_open_last_message_reach_the_template(make_tokenizer: Make) -> None:
    ours = make_tokenizer(TOOLS)
    ask: list[Message] = [{"role": "user", "content": "a"}]
    assert ours.render(ask, arguments={"enable_thinking": False}).endswith("<think>\n\n</think>\n\n")
    assert ours.render(ask, tools=[{"type": "function"}]).startswith('{"type": "function"}<|im_start|>')
    begun: list[Message] = [*ask, {"role": "assistant", "content": "It is"}]
    assert ours.render(begun, answer_next=False, go_on=True).endswith("<|im_start|>assistant\nIt is")


@pytest.mark.parametrize("name", ["chat_template", "tokenize"])
def test_a_request_brings_no_template_of_its_own_by_its_arguments(name: str, make_tokenizer: Make) -> None:
    """A template is a program: it could keep the proxy busy for ever."""
    with pytest.raises(RefusalError, match=f"chat_template_kwargs can't set {name}"):
        make_tokenizer(KINDS["chatml"]).render([{"role": "user", "content": "a"}], arguments={name: "{{ 1 + 1 }}"})


def test_what_a_template_refuses_is_told_without_the_words(make_tokenizer: Make) -> None:
    ours = make_tokenizer(Kind(NO_SYSTEM, "<|im_end|>"))
    with pytest.raises(RefusalError, match="a conversation of system, user") as caught:
        ours.render([{"role": "system", "content": "private"}, {"role": "user", "content": "private"}])
    assert "private" not in caught.value.message


@given(text=st.text(max_size=30), prompt=st.text(max_size=5))
def test_the_pieces_of_an_answer_are_its_text(tokenizer: Tokenizer, text: str, prompt: str) -> None:
    ids = tokenizer.encode(text, special=False)
    before = tokenizer.encode(prompt, special=False)
    pieces = tokenizer.pieces(before, ids, skip_special=False)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 255), max_size=20))
def test_any_tokens_have_pieces(tokenizer: Tokenizer, ids: list[int]) -> None:
    """A random model also samples bytes that make no character."""
    assert len(tokenizer.pieces([], ids, skip_special=True)) == len(ids)


def test_bytes_that_make_no_character_confuse_no_tokenizer(make_tokenizer: Make) -> None:
    """The decoder of a tokenizer with bytes for unknown letters gives up at these."""
    ids = [122, 278, 45, 175, 270]
    assert len(make_tokenizer(KINDS["marked words"]).pieces([281, 10, 206], ids, skip_special=True)) == len(ids)


@given(text=st.text(max_size=20))
def test_the_texts_of_all_tokens_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, special=False)
    shown = "".join(tokenizer.token_text(token, ids[:index]) for index, token in enumerate(ids))
    assert shown == tokenizer.decode(ids)


def test_a_token_within_a_character_has_no_text(tokenizer: Tokenizer) -> None:
    first, last = tokenizer.encode("ü", special=False)
    before = tokenizer.encode("a", special=False)
    assert [tokenizer.token_text(first, before), tokenizer.token_text(last, [*before, first])] == ["", "ü"]
    # Alone it completes nothing.
    assert tokenizer.token_text(last, before) == ""
    assert tokenizer.pieces([], [first, last], skip_special=True) == ["", "ü"]


def test_defaults_and_ends_are_those_of_the_model(make_tokenizer: Make) -> None:
    plain = make_tokenizer()
    assert plain.defaults == SamplingDefaults(temperature=1.0, top_p=1.0, top_k=0)
    assert plain.end_ids == {plain.end_id}
    told = make_tokenizer(generation={"temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": [7, 9]})
    assert told.defaults == SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20)
    assert told.end_ids == {7, 9, told.end_id}
    assert told.context_length == 128


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(ModelFilesError, match=str(tmp_path)):
        read_tokenizer(str(tmp_path))
