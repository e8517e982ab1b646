"""The base model's folder: on a volume, or a repository of the hub brought into the cache. And its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from claas_crds.contract import FailureReason, ModelLocation
from claas_trainer.errors import InputError
from claas_trainer.paths import Paths
from claas_trainer.samples import ModelLimits
from claas_trainer.store.errors import is_storage_fault, store_error

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_CONFIGURATION = ("*.json", "*.jinja", "*.txt", "*.model")
_WEIGHTS = ("*.safetensors",)
_REFUSALS = range(400, 500)


def _not_found(message: str) -> InputError:
    return InputError(message, FailureReason.MODEL_NOT_FOUND)


def find_model(location: ModelLocation, paths: Paths, *, weights: bool = True) -> Path:
    """The folder with config, tokenizer and weights; a hub repository is downloaded into the cache first.

    Without `weights` a download leaves them out. Raises InputError (MODEL_NOT_FOUND), or with HUB_UNREACHABLE
    when the hub does not answer, which may pass.
    """
    folder = paths.model_folder(location)
    if folder is None:
        return _snapshot(location, paths, (*_CONFIGURATION, *_WEIGHTS) if weights else _CONFIGURATION)
    if not (folder / "config.json").is_file():
        raise _not_found(f"model.path: {folder} has no config.json; check spec.model.source and the volume")
    return folder


def _snapshot(location: ModelLocation, paths: Paths, files: Sequence[str]) -> Path:
    if not location.repository:
        raise InputError("model: neither path nor repository is given")
    # The hub's client is built on httpx2, and its errors are that library's.
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    cache = paths.hub_cache if paths.hub_cache.is_dir() else paths.scratch / "hub"
    token = paths.hub_token.read_text(encoding="utf-8").strip() if paths.hub_token.is_file() else None
    name = location.repository + (f"@{location.revision}" if location.revision else "")
    try:
        return Path(
            snapshot_download(
                location.repository,
                revision=location.revision,
                cache_dir=cache,
                token=token or False,
                allow_patterns=list(files),
            )
        )
    except HFValidationError as error:
        raise _not_found(f"model.repository: {name} can't be downloaded; it is no name of a repository") from error
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in _REFUSALS:
            raise _not_found(
                f"model.repository: {name} can't be downloaded (HTTP {error.response.status_code}); check name, "
                "revision and token"
            ) from error
        if isinstance(error, OSError) and is_storage_fault(error):
            raise store_error(error, cache) from error
        raise InputError(
            f"model.repository: {name} can't be downloaded ({type(error).__name__}), and is not in the cache; "
            "check the pod's way to the hub",
            FailureReason.HUB_UNREACHABLE,
        ) from error


def read_config(folder: Path) -> PretrainedConfig:
    """The model's configuration. Raises InputError (MODEL_NOT_FOUND)."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _not_found(
            f"{folder}/config.json: can't be used ({type(error).__name__}); is it a causal LM?"
        ) from error


def limits_of(config: PretrainedConfig) -> ModelLimits:
    """The vocabulary and context of a model."""
    text = config.get_text_config()
    return ModelLimits(int(text.vocab_size), int(getattr(text, "max_position_embeddings", 0) or 2**31))


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
            raise _not_found(
                f"the chat template refuses a conversation of {roles}; some know no system prompt"
            ) from None


def read_tokenizer(folder: Path) -> HubTokenizer:
    """The model's tokenizer. Raises InputError (MODEL_NOT_FOUND) when it, or its chat template, is missing."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_found(f"{folder}: its tokenizer can't be read ({type(error).__name__})") from error
    if not tokenizer.chat_template:
        raise _not_found(
            f"{folder}: its tokenizer has no chat template; add chat_template.jinja to the model's folder"
        )
    return HubTokenizer(tokenizer, _end_ids(folder, tokenizer.eos_token_id))


def _end_ids(folder: Path, eos: int | None) -> frozenset[int]:
    ids = set() if eos is None else {eos}
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            named = json.loads(path.read_bytes()).get("eos_token_id")
        except (ValueError, AttributeError):
            raise _not_found(f"{path}: not a JSON object; restore the model's file") from None
        ids.update(named if isinstance(named, list) else [] if named is None else [named])
    return frozenset(ids)
