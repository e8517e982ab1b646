"""Tokenises texts that contain a user's text: control tokens spelled in the user's part are encoded as text."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ControlTextError(Exception):
    """The tokenizer can encode a text only as a control token."""


@dataclass(frozen=True)
class Piece:
    """Part of a text. Control tokens spelled in it are encoded as such, unless it comes from a user."""

    text: str
    from_user: bool = False


class UserTextEncoder:
    """Encodes pieces into one list of token ids.

    A text without control tokens is encoded as usual. Otherwise the tokenizer is copied with secret random names for
    its control tokens, and the pieces that may contain control tokens are rewritten with these names. A user's text
    can't spell them, and everything else is encoded as by the original tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._copies: dict[frozenset[int], _Renamed] = {}

    def encode(self, pieces: Sequence[Piece], hidden: frozenset[int]) -> list[int]:
        """The token ids; no token of `hidden` results from a user's piece. Raises ControlTextError."""
        said = [piece.text for piece in pieces if piece.from_user]
        if not any(hidden.intersection(self._plain(text)) for text in said):
            return self._plain("".join(piece.text for piece in pieces))
        if not hasattr(self._tokenizer, "backend_tokenizer"):
            return self._encode_apart(pieces, hidden)
        if hidden not in self._copies:
            self._copies[hidden] = _Renamed.of(self._tokenizer.backend_tokenizer.to_str(), hidden)
        copy = self._copies[hidden]
        if any(self._controls(hidden).intersection(copy.encode(text)) for text in said):
            raise ControlTextError
        return copy.encode("".join(piece.text if piece.from_user else copy.frame(piece.text) for piece in pieces))

    def _controls(self, hidden: frozenset[int]) -> frozenset[int]:
        # The token for unknown characters is not a control token.
        return hidden - {self._tokenizer.unk_token_id}

    def _plain(self, text: str, **options: bool) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False, **options)]

    def _encode_apart(self, pieces: Sequence[Piece], hidden: frozenset[int]) -> list[int]:
        """Encodes piece by piece, for tokenizers that can't be copied."""
        ids: list[int] = []
        for piece in pieces:
            if not piece.from_user:
                ids += self._plain(piece.text)
                continue
            read = self._plain(piece.text, split_special_tokens=True)
            if self._controls(hidden).intersection(read):
                raise ControlTextError
            ids += read
        return ids


@dataclass(frozen=True)
class _Renamed:
    """A copy of a tokenizer with other names for its control tokens."""

    ids: Callable[[str], list[int]]
    names: dict[str, str]
    original: dict[int, int]
    """Maps ids of the copy to the original's; a renamed token may have another id."""

    @classmethod
    def of(cls, serialised: str, hidden: frozenset[int]) -> _Renamed:
        from tokenizers import Tokenizer

        document = json.loads(serialised)
        names: dict[str, str] = {}
        for token in document["added_tokens"]:
            if token["id"] in hidden:
                names[token["content"]] = token["content"] = secrets.token_hex(12)
                token |= {"normalized": False, "single_word": False}
        copy = Tokenizer.from_str(json.dumps(document))
        copy.no_truncation()
        copy.no_padding()
        places = ((copy.token_to_id(token["content"]), token["id"]) for token in document["added_tokens"])
        original = {new: old for new, old in places if new is not None}
        return cls(lambda text: copy.encode(text, add_special_tokens=False).ids, names, original)

    def encode(self, text: str) -> list[int]:
        return [self.original.get(token, token) for token in self.ids(text)]

    def frame(self, text: str) -> str:
        """The text with the new names."""
        longest_first = sorted(self.names, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest_first)), lambda found: self.names[found[0]], text)
