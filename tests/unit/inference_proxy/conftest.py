"""Tokenizers as the proxy reads them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from claas_inference_proxy.prompts.tokenizer import Tokenizer
from tests.unit.trainer.chat_models import KINDS, Kind, chat_model

Make = Callable[..., Tokenizer]


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes one of that kind, with a generation_config.json of its own."""

    def make(kind: Kind = KINDS["chatml"], generation: dict[str, object] | None = None) -> Tokenizer:
        folder = tmp_path_factory.mktemp("tokenizer")
        (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return Tokenizer(chat_model(kind).tokenizer, folder)

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Make) -> Tokenizer:
    return make_tokenizer()
