"""The base model's tokenizer and chat template, read by transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from claas_trainer.errors import not_found
from claas_trainer.samples.chat_template import (
    ChatRenderer,
    PromptOrigin,
    ServerChat,
    ServerRenderer,
    TemplateRenderer,
)
from claas_trainer.samples.user_text import Piece, UserTextEncoder

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
"""The class that transformers chooses for a model type and the tokenizer class that the file names. Letting
transformers choose takes seconds, because it imports its model classes."""
_DEFAULT_TEMPLATE = "default"
_OTHER_NAMES = {"PreTrainedTokenizerFast": _GENERIC, "Qwen2TokenizerFast": _QWEN}


class HubTokenizer:
    """A transformers tokenizer as a `ChatTokenizer`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_of_turn_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.end_of_turn_ids = end_of_turn_ids
        added = tokenizer.added_tokens_decoder
        self.added_tokens = {str(each.content): id_ for id_, each in added.items()}
        self.special_ids = frozenset(tokenizer.all_special_ids) | {id_ for id_, each in added.items() if each.special}
        self._user_text = UserTextEncoder(tokenizer)

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False)]

    def encode_pieces(self, pieces: Sequence[Piece], hidden: frozenset[int]) -> list[int]:
        return self._user_text.encode(pieces, hidden)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def own_template(self) -> TemplateRenderer:
        """The model's own chat template. Raises InputError (MODEL_NOT_FOUND) if it has no usable one."""
        found = self.tokenizer.chat_template
        place = self.tokenizer.name_or_path
        if not found:
            raise not_found(
                f"{place}: its tokenizer has no chat template; add chat_template.jinja to the model's folder"
            )
        if isinstance(found, dict) and _DEFAULT_TEMPLATE not in found:
            names = ", ".join(sorted(found))
            raise not_found(
                f"{place}: its tokenizer has several chat templates ({names}) and none is called"
                f" {_DEFAULT_TEMPLATE}; add one, or start vLLM with --chat-template and the companion"
            )
        return TemplateRenderer(self.tokenizer, PromptOrigin.MODEL)

    def renderer(self, server: ServerChat | None) -> ChatRenderer:
        """Renders prompts as the server does or, if no server is known, with the model's template. Raises
        InputError."""
        if server is None:
            return self.own_template()
        has_template = server.template is not None or bool(self.tokenizer.chat_template)
        if server.ask is not None and not (server.told and has_template):
            return ServerRenderer(server.ask, self.decode, source=str(self.tokenizer.chat_template or ""))
        if server.template is None:
            return replace(self.own_template(), origin=PromptOrigin.SERVER, arguments=server.arguments)
        return TemplateRenderer(self.tokenizer, PromptOrigin.SERVER, server.template, server.arguments)


def read_tokenizer(folder: Path) -> HubTokenizer:
    """The model's tokenizer. Raises InputError (MODEL_NOT_FOUND) if it is missing."""
    import transformers

    try:
        chosen = getattr(transformers, direct_class(folder) or "AutoTokenizer")
        tokenizer = chosen.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise not_found(f"{folder}: its tokenizer can't be read ({type(error).__name__})") from error
    return HubTokenizer(tokenizer, _end_ids(folder, tokenizer.eos_token_id))


def direct_class(folder: Path) -> str | None:
    """Name of the tokenizer's class, if known without asking transformers."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        found = json.loads((folder / "tokenizer_config.json").read_bytes())
        if "auto_map" in found or not (folder / "tokenizer.json").is_file():
            return None
        name = found.get("tokenizer_class")
        return _DIRECT.get((config.get("model_type"), _OTHER_NAMES.get(name, name)))
    except (OSError, ValueError, AttributeError, TypeError):
        # The code that uses these files reports what is wrong with them.
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
