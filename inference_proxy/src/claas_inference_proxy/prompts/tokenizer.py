"""The base model's tokenizer and chat template, read from its folder or the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue
from tokenizers.decoders import DecodeStream

from claas_inference_proxy.errors import ModelFilesError, bad_value
from claas_inference_proxy.prompts.conversation import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
LONGEST_CHARACTER = 4
"""Tokens before one that may be needed for its text; vLLM looks at as many."""
_PARTIAL = "\ufffd"
_CONFUSED = "Invalid prefix encountered"
_MARKER = "marker"
_OURS = frozenset({"chat_template", "tokenize"})
"""Arguments of the rendering that no request may set: a template of a client's is a program of its."""


@dataclass(frozen=True)
class SamplingDefaults:
    """Settings of a request that names none, from the model's generation_config.json as in vLLM."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class Tokenizer:
    """Text to token ids and back. Not for several threads at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        generation = _document(folder / "generation_config.json")
        config = _document(folder / "config.json")
        self.vocabulary = max(len(tokenizer), _whole(config.get("vocab_size")) or 0)
        self.context_length = _whole(config.get("max_position_embeddings"))
        self.end_id = _whole(tokenizer.eos_token_id)
        """The token that ends an answer without a stop reason."""
        named = generation.get("eos_token_id")
        ids = {_whole(each) for each in (named if isinstance(named, list) else [named])} | {self.end_id}
        self.end_ids = frozenset(each for each in ids if each is not None)
        """All tokens that end an answer."""
        self.defaults = SamplingDefaults(
            temperature=_number(generation.get("temperature"), 1.0),
            top_p=_number(generation.get("top_p"), 1.0),
            top_k=_whole(generation.get("top_k")) or 0,
        )
        self.takes_parts = self._takes_parts()
        """Whether the chat template wants contents as lists of parts."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; with `special`, those that the tokenizer adds around a text."""
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=special)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def names(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary spells them."""
        return [str(each) for each in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def token_text(self, token: int, before: Sequence[int] = ()) -> str:
        """The text of one token, which follows others: with the beginning of a character that it completes, and empty
        if the character goes on."""
        text = self.decode([token])
        for length in range(1, min(len(before), LONGEST_CHARACTER) + 1) if text.endswith(_PARTIAL) else ():
            context = before[-length:]
            together = self.decode([*context, token])
            if not together.endswith(_PARTIAL):
                whole = len(context)
                while whole and self.decode([context[whole - 1]]).endswith(_PARTIAL):
                    whole -= 1
                pairs = zip(together, self.decode(context[:whole]), strict=False)
                shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                return together[shared:]
        return "" if text.endswith(_PARTIAL) else text

    def pieces(self, prompt: Sequence[int], ids: Sequence[int], *, skip_special: bool) -> list[str]:
        """The text that each token adds to an answer behind a prompt; empty within a character."""
        stream = DecodeStream(ids=list(prompt), skip_special_tokens=skip_special)
        found = []
        for token in ids:
            try:
                piece = stream.step(self._backend, token)
            except Exception as error:
                # Bytes that make no character confuse it with some tokenizers; vLLM begins anew then.
                if not str(error).startswith(_CONFUSED):
                    raise
                stream = DecodeStream(skip_special_tokens=skip_special)
                piece = stream.step(self._backend, token)
            found.append(piece or "")
        return found

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, JsonValue]] | None = None,
        documents: Sequence[Mapping[str, JsonValue]] | None = None,
        answer_next: bool = True,
        go_on: bool = False,
        arguments: Mapping[str, JsonValue] | None = None,
    ) -> str:
        """The prompt of a conversation by the model's chat template: up to the beginning of the answer with
        `answer_next`, into the last message with `go_on`. Raises RefusalError, without a word of the conversation."""
        if not messages:
            raise bad_value("messages must have at least one message", "messages")
        if theirs := sorted(_OURS & (arguments or {}).keys()):
            raise bad_value(f"chat_template_kwargs can't set {', '.join(theirs)}", "chat_template_kwargs")
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=None if tools is None else list(tools),
                    documents=None if documents is None else list(documents),
                    add_generation_prompt=answer_next,
                    continue_final_message=go_on,
                    tokenize=False,
                    **(arguments or {}),
                )
            )
        except Exception as error:  # noqa: BLE001 - a template is a program and may raise anything, also the texts
            roles = ", ".join(str(message["role"]) for message in messages)
            raise bad_value(
                f"the chat template can't render a conversation of {roles} ({type(error).__name__})", "messages"
            ) from None

    def _takes_parts(self) -> bool:
        """Whether the template writes the text of a list of parts. One that takes texts alone leaves it out, or
        writes the list itself."""
        chat: list[Message] = [{"role": "user", "content": [{"type": "text", "text": _MARKER}]}]
        try:
            shown = str(self._tokenizer.apply_chat_template(chat, tokenize=False))
        except Exception:  # noqa: BLE001 - as above
            return False
        return _MARKER in shown and f"'{_MARKER}'" not in shown and f'"{_MARKER}"' not in shown


def read_tokenizer(model: str, *, revision: str | None = None) -> Tokenizer:
    """Of a model's folder, or of a repository of the hub. Raises ModelFilesError."""
    import transformers

    folder = Path(model)
    try:
        if not folder.is_dir():
            folder = _from_hub(model, revision)
        if not (folder / "tokenizer.json").is_file():
            raise ModelFilesError(f"{model}: it has no tokenizer.json, which the inference proxy needs")
        return Tokenizer(transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True), folder)
    except ModelFilesError:
        raise
    except Exception as error:
        # The hub's client raises those of its HTTP library.
        raise ModelFilesError(f"{model}: its tokenizer can't be read ({type(error).__name__})") from error


def _from_hub(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=list(_FILES)))


def _document(file: Path) -> Mapping[str, JsonValue]:
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{file} can't be read ({type(error).__name__})") from None
    return document if isinstance(document, dict) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object, otherwise: float) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise
