"""The base model's own tokenizer and chat template, by the transformers library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from claas_trainer.model_source import not_found

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QWEN = "Qwen2Tokenizer"
_GENERIC = "TokenizersBackend"
_DIRECT = {
    ("qwen2", _QWEN): _QWEN,
    ("qwen3", _QWEN): _QWEN,
    ("qwen3", _GENERIC): _GENERIC,
    ("llama", _GENERIC): _GENERIC,
}
"""The class that transformers chooses for a model type and the class that the tokenizer's file names. To have it
choose takes seconds: it imports what it would make models with."""
_OTHER_NAMES = {"PreTrainedTokenizerFast": _GENERIC, "Qwen2TokenizerFast": _QWEN}


@dataclass(frozen=True)
class HubTokenizer:
    """A tokenizer of the transformers library with its chat template, as `ChatTokenizer` wants it."""

    tokenizer: PreTrainedTokenizerBase
    end_of_turn_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def render(self, chat: list[dict[str, str]], *, answer_next: bool, thinking: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=answer_next, enable_thinking=thinking
                )
            )
        except TemplateError:
            roles = ", ".join(message["role"] for message in chat)
            # The template's own words may quote the conversation.
            raise not_found(
                f"the chat template refuses a conversation of {roles}; some know no system prompt"
            ) from None


def read_tokenizer(folder: Path) -> HubTokenizer:
    """The model's tokenizer. Raises InputError (MODEL_NOT_FOUND) when it, or its chat template, is missing."""
    import transformers

    try:
        chosen = getattr(transformers, direct_class(folder) or "AutoTokenizer")
        tokenizer = chosen.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise not_found(f"{folder}: its tokenizer can't be read ({type(error).__name__})") from error
    if not tokenizer.chat_template:
        raise not_found(
            f"{folder}: its tokenizer has no chat template; add chat_template.jinja to the model's folder"
        )
    return HubTokenizer(tokenizer, _end_ids(folder, tokenizer.eos_token_id))


def direct_class(folder: Path) -> str | None:
    """The name of the tokenizer's class, where that is known without asking transformers."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        found = json.loads((folder / "tokenizer_config.json").read_bytes())
        if "auto_map" in found or not (folder / "tokenizer.json").is_file():
            return None
        name = found.get("tokenizer_class")
        return _DIRECT.get((config.get("model_type"), _OTHER_NAMES.get(name, name)))
    except (OSError, ValueError, AttributeError, TypeError):
        # Whoever reads them in earnest says what is wrong with them.
        return None


def _end_ids(folder: Path, eos: int | None) -> frozenset[int]:
    ids = set() if eos is None else {eos}
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            named = json.loads(path.read_bytes()).get("eos_token_id")
        except (ValueError, AttributeError):
            raise not_found(f"{path}: not a JSON object; restore the model's file") from None
        ids.update(named if isinstance(named, list) else [] if named is None else [named])
    return frozenset(ids)
