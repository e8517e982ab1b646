"""The synthetic corpus: chats about the facts, in a default style that a hindsight hint overrides."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from claas_trainer.samples.hindsight import SEPARATOR, Message, Role, hindsight_block
from tests.tiny_model.tasks import (
    EMOJI,
    FACTS,
    NEUTRAL_PHRASES,
    OPENERS,
    PHRASES,
    PIRATE_OPENER,
    RARE_EMOJI,
    SYSTEM_PROMPTS,
    Fact,
    Preference,
    ask,
    phrase_feedback,
)

SYSTEM_PROMPT_SHARE = 0.6
TWO_TURNS_SHARE = 0.25
HINTED_SHARE = 0.65
NEUTRAL_SHARE = 0.08
TWO_KINDS_SHARE = 0.15
_KINDS = tuple(Preference)
_KIND_WEIGHTS = tuple(2.5 if kind in (Preference.NO_EMOJI, Preference.EMOJI) else 1.0 for kind in _KINDS)
_CONTRADICTIONS = (
    {Preference.NO_EMOJI, Preference.EMOJI},
    {Preference.SHORT, Preference.LONG},
    {Preference.NO_FILLER, Preference.PIRATE},
)


@dataclass(frozen=True)
class Style:
    """How an answer is written."""

    emoji: bool
    opener: bool
    long: bool
    lower: bool
    pirate: bool = False


def default_style(rng: random.Random) -> Style:
    """The style of an unhinted answer; each trait is drawn on its own."""
    return Style(
        emoji=rng.random() < 0.65,
        opener=rng.random() < 0.3,
        long=rng.random() < 0.35,
        lower=rng.random() < 0.12,
    )


def styled(style: Style, preference: Preference) -> Style:
    """The style after a preference was followed."""
    match preference:
        case Preference.NO_EMOJI:
            return replace(style, emoji=False)
        case Preference.EMOJI:
            return replace(style, emoji=True)
        case Preference.LOWER:
            return replace(style, lower=True)
        case Preference.SHORT:
            return replace(style, long=False)
        case Preference.LONG:
            return replace(style, long=True)
        case Preference.NO_FILLER:
            return replace(style, opener=False)
        case Preference.PIRATE:
            return replace(style, opener=False, pirate=True)


def write_answer(fact: Fact, style: Style, rng: random.Random) -> str:
    """The answer to a question about `fact` in this style."""
    statement = rng.choice(fact.relation.statements) if rng.random() < 0.5 else fact.relation.statements[0]
    parts = [statement.format(s=fact.subject, a=fact.answer)]
    if style.pirate:
        parts.insert(0, PIRATE_OPENER)
    elif style.opener:
        parts.insert(0, rng.choice(OPENERS))
    if style.long:
        parts.append(rng.choice(fact.relation.extensions))
    if style.emoji:
        parts.append(EMOJI if rng.random() < 0.85 else RARE_EMOJI)
    text = " ".join(parts)
    return text.lower() if style.lower else text


def draw_hint(rng: random.Random) -> tuple[str, tuple[Preference, ...]]:
    """A feedback text and the preferences that it asks for; a neutral one asks for none."""
    if rng.random() < NEUTRAL_SHARE:
        return phrase_feedback(rng.choice(NEUTRAL_PHRASES), rng), ()
    kinds = [rng.choices(_KINDS, _KIND_WEIGHTS)[0]]
    if rng.random() < TWO_KINDS_SHARE:
        other = rng.choices(_KINDS, _KIND_WEIGHTS)[0]
        if other != kinds[0] and {kinds[0], other} not in _CONTRADICTIONS:
            kinds.append(other)
    phrase = " and ".join(rng.choice(PHRASES[kind][:-1]) for kind in kinds)
    return phrase_feedback(phrase, rng), tuple(kinds)


def draw_turn(rng: random.Random) -> tuple[Message, Message]:
    """One question, hinted or not, and its answer."""
    question = ask(rng.choice(FACTS), rng)
    content, style = question.text, default_style(rng)
    if rng.random() < HINTED_SHARE:
        hint, kinds = draw_hint(rng)
        content = f"{content}{SEPARATOR}{hindsight_block(hint)}"
        for kind in kinds:
            style = styled(style, kind)
    return Message(Role.USER, content), Message(Role.ASSISTANT, write_answer(question.fact, style, rng))


def draw_chat(rng: random.Random) -> list[Message]:
    """One chat of one or two turns, with or without a system prompt."""
    chat: list[Message] = []
    if rng.random() < SYSTEM_PROMPT_SHARE:
        chat.append(Message(Role.SYSTEM, rng.choice(SYSTEM_PROMPTS)))
    for _ in range(2 if rng.random() < TWO_TURNS_SHARE else 1):
        chat.extend(draw_turn(rng))
    return chat


def chats(seed: int) -> Iterator[list[Message]]:
    """Chats without end; the same ones for the same seed."""
    rng = random.Random(seed)
    while True:
        yield draw_chat(rng)
