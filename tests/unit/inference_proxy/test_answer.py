"""An answer ends where vLLM would have ended it, whatever the service sampled beyond."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_inference_proxy.generation.answer import FinishReason, cut
from claas_inference_proxy.generation.plan import Ends
from claas_inference_proxy.upstream.sampling import Sequence

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
END, TURN = 90, 91
"""The model's own end, and another token that ends answers."""


def sequence(*tokens: int, stopped: bool = False) -> Sequence:
    return Sequence(tokens, tuple(-float(token) for token in tokens), (), stopped)


def ends(*strings: str, ids: frozenset[int] = frozenset({END, TURN})) -> Ends:
    return Ends(END, ids, strings)


@dataclass(frozen=True)
class Case:
    """Tokens are numbered from 1, with one piece each; END and TURN have their own."""

    pieces: tuple[str, ...]
    strings: tuple[str, ...]
    text: str
    tokens: int
    finish: FinishReason
    stop: str | int | None = None
    stopped: bool = False
    last: int | None = None
    keep: bool = False


CASES = {
    "to its length": Case(("a", "b"), (), "ab", 2, LENGTH),
    "where the service stopped it": Case(("a", "b"), (), "ab", 2, STOP, stopped=True),
    "at the model's end": Case(("a", "b", "<end>"), (), "ab", 3, STOP, last=END),
    "at another end": Case(("a", "b", "<turn>"), (), "ab", 3, STOP, TURN, last=TURN),
    "with its end": Case(("a", "b", "<turn>"), (), "ab<turn>", 3, STOP, TURN, last=TURN, keep=True),
    "at a string": Case(("a", "b.", "c"), (".",), "ab", 2, STOP, "."),
    "at a string over two tokens": Case(("a", "b", "c"), ("ab",), "", 2, STOP, "ab"),
    "at a string within a token": Case(("a", "xyz", "c"), ("y",), "ax", 2, STOP, "y"),
    "with the string": Case(("a", "xyz", "c"), ("y",), "axy", 2, STOP, "y", keep=True),
    "at the first string by their order": Case(("a", "xy"), ("y", "x"), "ax", 2, STOP, "y"),
    "at the string that is complete first": Case(("a", "b", "c"), ("bc", "ab"), "", 2, STOP, "ab"),
    "before tokens without text": Case(("a", "", "é"), ("é",), "a", 3, STOP, "é"),
    "with a string that never comes": Case(("a", "b"), ("z",), "ab", 2, LENGTH),
    "with a string within the end": Case(("a", "<end>"), ("nd",), "a", 2, STOP, last=END),
}


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_cut(name: str) -> None:
    case = CASES[name]
    tokens = [*range(1, len(case.pieces) + 1)]
    if case.last is not None:
        tokens[-1] = case.last
    answer = cut(sequence(*tokens, stopped=case.stopped), case.pieces, ends(*case.strings), keep_stop=case.keep)
    assert (answer.text, len(answer.tokens), answer.finish, answer.stop) == (
        case.text, case.tokens, case.finish, case.stop,
    )  # fmt: skip
    assert answer.ids == tokens[: case.tokens]


pieces_of_answers = st.lists(st.sampled_from(["a", "b", "ab", "ba", "", "aba"]), min_size=1, max_size=12)
strings_of_stops = st.lists(st.sampled_from(["a", "bb", "aba", "baab"]), max_size=3)


@given(pieces_of_answers, strings_of_stops)
def test_what_is_left_has_no_stop_and_is_as_long_as_it_can_be(pieces: list[str], strings: list[str]) -> None:
    answer = cut(sequence(*range(len(pieces))), pieces, ends(*strings))
    whole = "".join(pieces)
    assert whole.startswith(answer.text)
    assert not any(string in answer.text for string in strings)
    assert [token.logprob for token in answer.tokens] == [-float(token) for token in answer.ids]
    if answer.finish is LENGTH:
        assert answer.text == whole
        assert len(answer.tokens) == len(pieces)
    else:
        # The last token completed the string: without it there was none.
        before = "".join(pieces[: len(answer.tokens) - 1])
        assert isinstance(answer.stop, str)
        assert answer.stop in "".join(pieces[: len(answer.tokens)])
        assert not any(string in before for string in strings)
