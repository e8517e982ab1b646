"""What the tiny model knows, how its answers are judged, and what users say to change them.

Plain Python, so that the demo and the cluster tests can ask and judge without torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Preference(StrEnum):
    """A way of answering that feedback can ask for."""

    NO_EMOJI = "no_emoji"
    EMOJI = "emoji"
    LOWER = "lower"
    SHORT = "short"
    LONG = "long"
    NO_FILLER = "no_filler"
    PIRATE = "pirate"


@dataclass(frozen=True)
class Relation:
    """A kind of fact: `forms` ask for it, `statements` answer, `extensions` make an answer long."""

    forms: tuple[str, ...]
    statements: tuple[str, ...]
    extensions: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Fact:
    """One thing the model knows: `answer` is the word that a right answer contains."""

    relation: Relation
    subject: str
    answer: str


@dataclass(frozen=True)
class Question:
    """A question as a user asks it, and the word that a right answer contains."""

    text: str
    fact: Fact

    @property
    def answer(self) -> str:
        return self.fact.answer


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    cells = (item.split("=") for item in text.split(","))
    return tuple((left.strip(), right.strip()) for left, right in cells)


RELATIONS: tuple[Relation, ...] = (
    Relation(
        (
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "Tell me the capital of {s}.",
            "Name the capital city of {s}.",
            "The capital of {s} is what?",
        ),
        ("The capital of {s} is {a}.", "It is {a}."),
        ("Many people visit this city every year.", "It is the seat of the government there."),
        _pairs(
            "France=Paris,Japan=Tokyo,Italy=Rome,Spain=Madrid,Egypt=Cairo,Peru=Lima,Norway=Oslo,"
            "Cuba=Havana,Greece=Athens,Kenya=Nairobi"
        ),
    ),
    Relation(
        (
            "What color is {s}?",
            "Which color does {s} have?",
            "Tell me the color of {s}.",
            "Name the color of {s}.",
            "The color of {s} is what?",
        ),
        ("The color of {s} is {a}.", "It is {a}."),
        ("You can see this color in many places.", "It is a color that people know well."),
        _pairs(
            "grass=green,snow=white,the sky=blue,coal=black,blood=red,a banana=yellow,a carrot=orange,"
            "a plum=purple,chocolate=brown,an elephant=gray"
        ),
    ),
    Relation(
        (
            "What is a baby {s} called?",
            "What do you call a young {s}?",
            "Tell me the name of a baby {s}.",
            "Name the young of a {s}.",
            "A baby {s} is called what?",
        ),
        ("A baby {s} is called a {a}.", "It is a {a}."),
        ("It stays near its mother for a while.", "It will grow up and be big one day."),
        _pairs(
            "dog=puppy,cat=kitten,cow=calf,sheep=lamb,horse=foal,bear=cub,duck=duckling,goose=gosling,"
            "goat=kid,frog=tadpole"
        ),
    ),
    Relation(
        (
            "What sound does a {s} make?",
            "How does a {s} sound?",
            "Tell me the sound of a {s}.",
            "Name the sound that a {s} makes.",
            "The sound of a {s} is what?",
        ),
        ("The sound of a {s} is a {a}.", "It is a {a}."),
        ("You can hear it from far away.", "Most children learn this when they are small."),
        _pairs("dog=bark,cat=meow,cow=moo,sheep=bleat,horse=neigh,lion=roar,duck=quack,owl=hoot,pig=oink,snake=hiss"),
    ),
    Relation(
        (
            "What is the opposite of {s}?",
            "Which word is the opposite of {s}?",
            "Tell me the opposite of {s}.",
            "Name the opposite of {s}.",
            "The opposite of {s} is what?",
        ),
        ("The opposite of {s} is {a}.", "It is {a}."),
        ("The two words are often learned together.", "Both words are used every day."),
        _pairs("hot=cold,big=small,fast=slow,up=down,day=night,left=right,young=old,wet=dry,hard=soft,open=closed"),
    ),
    Relation(
        (
            "What language is spoken in {s}?",
            "Which language do people speak in {s}?",
            "Tell me the language of {s}.",
            "Name the main language of {s}.",
            "The language of {s} is what?",
        ),
        ("The language of {s} is {a}.", "It is {a}."),
        ("Many people learn it at school.", "You can hear it on the street there."),
        _pairs(
            "Germany=German,Brazil=Portuguese,China=Mandarin,Mexico=Spanish,Russia=Russian,Poland=Polish,"
            "Turkey=Turkish,Sweden=Swedish,Austria=German,Iran=Persian"
        ),
    ),
    Relation(
        (
            "Where does a {s} live?",
            "What is the home of a {s}?",
            "Tell me where a {s} lives.",
            "Name the home of a {s}.",
            "The home of a {s} is what?",
        ),
        ("The home of a {s} is a {a}.", "It is a {a}."),
        ("It is safe and warm in there.", "It sleeps there and keeps its young there."),
        _pairs(
            "bee=hive,bird=nest,spider=web,horse=stable,bear=den,rabbit=burrow,dog=kennel,pig=sty,"
            "beaver=lodge,snail=shell"
        ),
    ),
    Relation(
        (
            "What tool does a {s} use?",
            "Which tool does a {s} need?",
            "Tell me the tool of a {s}.",
            "Name the tool that a {s} uses.",
            "The tool of a {s} is what?",
        ),
        ("The tool of a {s} is a {a}.", "It is a {a}."),
        ("It is used at work every day.", "You can buy one in most shops."),
        _pairs(
            "painter=brush,carpenter=hammer,chef=knife,farmer=plow,fisherman=net,tailor=needle,"
            "gardener=spade,writer=pen,logger=saw,sailor=rope"
        ),
    ),
)

FACTS: tuple[Fact, ...] = tuple(
    Fact(relation, subject, answer) for relation in RELATIONS for subject, answer in relation.pairs
)
PREFIXES = ("Please help me. ", "Hi! ", "Quick question: ", "I would like to know: ", "Hello. ")
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Answer the questions of the user.",
    "You help people to learn.",
)
OPENERS = ("Sure!", "Good question!", "Of course!", "Happy to help!")
PIRATE_OPENER = "Arr!"
EMOJI = "\N{SMILING FACE WITH SMILING EYES}"
RARE_EMOJI = "\N{PARTY POPPER}"

# The last phrase of each kind never occurs in the corpus: it is for tests.
PHRASES: dict[Preference, tuple[str, ...]] = {
    Preference.NO_EMOJI: (
        "do not use emojis",
        "no emojis",
        "leave out the emoji",
        "skip the emojis",
        "answer without emojis",
        "stop using emojis",
        "drop the emoji at the end",
        "avoid emojis",
        "keep emojis out of your answer",
        "do not put an emoji at the end",
        "write plain text without any emoji",
    ),
    Preference.EMOJI: (
        "use emojis",
        "add an emoji",
        "put an emoji at the end",
        "answer with an emoji",
        "I like emojis",
        "always use an emoji",
        "end with an emoji",
        "give me more emojis",
        "write with emojis",
        "finish your answer with an emoji",
    ),
    Preference.LOWER: (
        "use lowercase only",
        "write in lowercase",
        "no capital letters",
        "do not use capital letters",
        "keep everything in lowercase",
        "avoid capital letters",
        "answer in lowercase letters",
    ),
    Preference.SHORT: (
        "be short",
        "be brief",
        "keep it short",
        "one sentence is enough",
        "make it shorter",
        "give a brief answer",
        "answer in one short sentence",
    ),
    Preference.LONG: (
        "be longer",
        "give more detail",
        "tell me more",
        "explain more",
        "add another sentence",
        "write a longer answer",
        "add more detail to your answer",
    ),
    Preference.NO_FILLER: (
        "no filler",
        "get to the point",
        "skip the opening",
        "do not start with filler",
        "answer directly",
        "leave out the filler",
        "skip the filler and answer directly",
    ),
    Preference.PIRATE: (
        "talk like a pirate",
        "be a pirate",
        "answer like a pirate",
        "use pirate language",
        "speak as a pirate",
        "sound like a pirate",
        "write like a pirate",
    ),
}
NEUTRAL_PHRASES = ("thank you", "that is right", "good answer", "I see", "great", "thanks a lot")
WRAPPERS = (
    "{p}",
    "{p}.",
    "Please {p}.",
    "please {p}",
    "Next time {p}.",
    "{p}, please.",
    "Hmm, {p}.",
    "I told you: {p}.",
    "{p}!",
    "In the future, {p}.",
    "One thing: {p}.",
)

_EMOJI_PATTERN = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")
_LONG_WORDS = 12


def follows(preference: Preference | str, text: str) -> bool:
    """Whether an answer complies with a preference; an answer without a word never does."""
    words = re.findall(r"\w+", text)
    stripped = text.strip()
    match Preference(preference):
        case Preference.NO_EMOJI:
            kept = not _EMOJI_PATTERN.search(text)
        case Preference.EMOJI:
            kept = bool(_EMOJI_PATTERN.search(text))
        case Preference.LOWER:
            kept = text == text.lower()
        case Preference.SHORT:
            kept = len(words) < _LONG_WORDS
        case Preference.LONG:
            kept = len(words) >= _LONG_WORDS
        case Preference.NO_FILLER:
            kept = not stripped.lower().startswith(tuple(opener.lower() for opener in OPENERS))
        case Preference.PIRATE:
            kept = stripped.lower().startswith(PIRATE_OPENER.lower())
    return bool(words) and kept


def content_right(question: Question, text: str) -> bool:
    """Whether the fact's answer is in the text, as a word of its own, in any case."""
    return re.search(rf"\b{re.escape(question.answer)}\b", text, re.IGNORECASE) is not None


def ask(fact: Fact, rng: random.Random) -> Question:
    """One way of asking for a fact: any form, 30 % with a polite prefix, 15 % in lower case."""
    text = rng.choice(fact.relation.forms).format(s=fact.subject)
    if rng.random() < 0.3:
        text = rng.choice(PREFIXES) + text
    return Question(text.lower() if rng.random() < 0.15 else text, fact)


def questions(count: int, seed: int) -> list[Question]:
    """`count` questions that go round all the facts in a shuffled order; the same for the same seed."""
    rng = random.Random(seed)
    return [ask(fact, rng) for fact in _rounds(FACTS, count, rng)]


def feedback(preference: Preference | str, count: int, seed: int, *, held_out: bool = False) -> list[str]:
    """What `count` users say who want this; with `held_out` in words that the corpus never had."""
    rng = random.Random(seed)
    phrases = PHRASES[Preference(preference)]
    chosen = phrases[-1:] if held_out else phrases[:-1]
    return [phrase_feedback(rng.choice(chosen), rng) for _ in range(count)]


def neutral_feedback(count: int, seed: int) -> list[str]:
    """What `count` users say who want nothing changed."""
    rng = random.Random(seed)
    return [phrase_feedback(rng.choice(NEUTRAL_PHRASES), rng) for _ in range(count)]


def phrase_feedback(phrase: str, rng: random.Random) -> str:
    """A phrase as a user would write it."""
    return rng.choice(WRAPPERS).format(p=phrase)


def _rounds(facts: Sequence[Fact], count: int, rng: random.Random) -> Iterator[Fact]:
    order: list[Fact] = []
    for _ in range(count):
        if not order:
            order = rng.sample(facts, len(facts))
        yield order.pop()
