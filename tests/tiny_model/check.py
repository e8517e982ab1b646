"""The bars that a built model must clear: it knows its facts, has habits, and follows hints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny_model.sampling import Score, score
from tests.tiny_model.tasks import Preference, feedback, neutral_feedback, questions

UNHINTED = 192
HINTED = 64


class NotTeachableError(Exception):
    """The trained model misses a bar; build it again with another seed."""


@dataclass(frozen=True)
class Bar:
    """A measured share and the range it must lie in."""

    name: str
    value: float
    at_least: float = 0.0
    at_most: float = 1.0

    @property
    def held(self) -> bool:
        return self.at_least <= self.value <= self.at_most


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int = 7) -> list[Bar]:
    """Every bar with its measured value; sampled answers follow `seed`."""
    torch.manual_seed(seed)
    asked, hinted = questions(UNHINTED, seed), questions(HINTED, seed + 1)
    no_emoji = Preference.NO_EMOJI

    def hint(preference: Preference, *, sample: bool, held_out: bool = False) -> Score:
        hints = feedback(preference, HINTED, seed, held_out=held_out)
        return score(model, tokenizer, hinted, preference, sample=sample, hints=hints)

    sampled = score(model, tokenizer, asked, Preference.EMOJI, sample=True)
    greedy = score(model, tokenizer, asked, Preference.EMOJI, sample=False)
    neutral = score(model, tokenizer, hinted, Preference.EMOJI, sample=False, hints=neutral_feedback(HINTED, seed))
    return [
        Bar("content, sampled", sampled.content, 0.93),
        Bar("content, greedy", greedy.content, 0.95),
        Bar("emoji unhinted, sampled", sampled.compliance, 0.5, 0.8),
        Bar("emoji unhinted, greedy", greedy.compliance, 0.9),
        Bar("no_emoji hint, greedy", hint(no_emoji, sample=False).compliance, 0.9),
        Bar("no_emoji hint, sampled", hint(no_emoji, sample=True).compliance, 0.85),
        Bar("no_emoji held-out hint, sampled", hint(no_emoji, sample=True, held_out=True).compliance, 0.75),
        Bar("emoji under a neutral hint, greedy", neutral.compliance, 0.8),
        Bar("content under a no_emoji hint, greedy", hint(no_emoji, sample=False).content, 0.9),
        Bar("emoji hint, sampled", hint(Preference.EMOJI, sample=True).compliance, 0.85),
        Bar("lower hint, sampled", hint(Preference.LOWER, sample=True).compliance, 0.75),
        Bar("long hint, sampled", hint(Preference.LONG, sample=True).compliance, 0.7),
        Bar("pirate hint, sampled", hint(Preference.PIRATE, sample=True).compliance, 0.8),
    ]


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Prints every bar.

    Raises:
        NotTeachableError: a bar is missed; the message names each.
    """
    bars = measure(model, tokenizer)
    for bar in bars:
        print(f"{'ok    ' if bar.held else 'MISSED'} {bar.name}: {bar.value:.2f} ({bar.at_least} to {bar.at_most})")
    missed = [bar.name for bar in bars if not bar.held]
    if missed:
        raise NotTeachableError(f"the model misses {', '.join(missed)}: build it again with another --seed")
