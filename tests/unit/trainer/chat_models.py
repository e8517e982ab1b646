"""Small tokenizers with chat templates of the shapes that models have: how turns open and close, and where the system
prompt goes."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from claas_trainer.model.hub_tokenizer import HubTokenizer

CHATML = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\\n<tool_response>\\n' }}{{ m.content }}{{ '\\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.arguments }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
HEADERS = (
    "<|begin|>{% for m in messages %}<|header|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header|>\n\n"
    "{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|end_header|>\n\n{% endif %}"
)
INSTRUCTIONS = (
    "<s>{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}{{ raise_exception('Only user and assistant are known') }}{% endif %}{% endfor %}"
)
MODEL_TURNS = (
    "<bos>{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first %}{{ system }}{% endif %}{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
PIPES = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
UNCLOSED = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<USER>{{ m.content }}{% else %}<ASSISTANT>{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<ASSISTANT>{% endif %}"
)
PLAIN_TEXT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n"
    "{% elif m.role == 'user' %}USER: {{ m.content }} ASSISTANT:{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
LINES = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NOTED = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'user' and loop.last %} /think{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role is not supported') }}{% endif %}" + CHATML
)


@dataclass(frozen=True)
class Kind:
    """A chat template with the control tokens that go with it; `unmarked` ones are not special to the tokenizer."""

    template: str
    end: str
    special: tuple[str, ...] = ()
    unmarked: tuple[str, ...] = ()
    nfc: bool = False
    marks_words: bool = False


KINDS = {
    "chatml": Kind(CHATML, "<|im_end|>", ("<|im_start|>",), ("<think>", "</think>"), nfc=True),
    "headers": Kind(HEADERS, "<|eot|>", ("<|begin|>", "<|header|>", "<|end_header|>")),
    "instructions": Kind(INSTRUCTIONS, "</s>", ("<s>", "[INST]", "[/INST]")),
    "model turns": Kind(MODEL_TURNS, "<end>", ("<bos>", "<turn>")),
    "pipes": Kind(PIPES, "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")),
    "unclosed": Kind(UNCLOSED, "</s>", ("<s>",), ("<USER>", "<ASSISTANT>")),
    "marked words": Kind(LINES, "</s>", marks_words=True),
    "a note at the last message": Kind(NOTED, "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")),
    "plain text": Kind(PLAIN_TEXT, "</s>"),
}


def chat_model(kind: Kind) -> HubTokenizer:
    """A byte-level tokenizer with that template, or one that marks words as SentencePiece does."""
    return _wrapped(_marking_tokenizer() if kind.marks_words else _byte_tokenizer(kind), kind)


def _marking_tokenizer() -> Tokenizer:
    """Each text between control tokens gets a space in front, and letters that are not known become bytes."""
    letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n", *map(chr, range(33, 127))]
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _byte_tokenizer(kind: Kind) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate([*alphabet, "ĊĊ", "?ĊĊ", "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ"), ("?", "ĊĊ"), ("t", "h")]))
    if kind.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrapped(tokenizer: Tokenizer, kind: Kind) -> HubTokenizer:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=kind.end, additional_special_tokens=list(kind.special)
    )
    fast.add_tokens([AddedToken(text, normalized=False, special=False) for text in kind.unmarked])
    fast.chat_template = kind.template
    end = fast.eos_token_id
    assert isinstance(end, int)
    return HubTokenizer(fast, frozenset({end}))
