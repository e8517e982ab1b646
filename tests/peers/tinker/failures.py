"""What a test can order to go wrong, at which call, how often."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from tinker.types import RequestErrorCategory

from tests.peers.tinker.calls import Call, Operation


class When(Enum):
    """The moments of a call at which something can happen."""

    RECEIVED = auto()
    """Before anything was done about it."""
    ACCEPTED = auto()
    """It was done, or its work was queued; the answer is not sent yet."""
    DONE = auto()
    """The queued work was done; its result can't be retrieved yet."""


@dataclass(frozen=True)
class Answer:
    """Answer with this HTTP status instead of doing anything."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """The service is gone: all connections break and new ones are refused."""

    seconds: float | None = None
    """How long; None until the peer's `come_back`."""


@dataclass(frozen=True)
class NeverComes:
    """Accept the request and never do it; its run goes no further."""


@dataclass(frozen=True)
class Fails:
    """Accept the request; its result says that it failed."""

    category: RequestErrorCategory = RequestErrorCategory.Server
    message: str = "ordered failure"


@dataclass(frozen=True)
class Slow:
    """Wait this many seconds first."""

    seconds: float


@dataclass(frozen=True)
class Do:
    """Call the test's function (in a thread of the peer), and go on when it returns."""

    function: Callable[[Call], None]


Effect = Answer | Cut | NeverComes | Fails | Slow | Do


@dataclass
class Rule:
    """An effect and the calls that it befalls: `times` of them from the `first` on that matches, None for ever."""

    operations: frozenset[Operation]
    effect: Effect
    when: When = When.RECEIVED
    first: int = 1
    times: int | None = None
    of: Operation | None = None
    run: str | None = None
    matched: int = 0
    lifted: bool = False

    @property
    def hits(self) -> int:
        """How many calls it befell."""
        after = max(0, self.matched - self.first + 1)
        return after if self.times is None else min(after, self.times)

    def lift(self) -> None:
        """Let nothing more go wrong by this rule."""
        self.lifted = True

    def befalls(self, call: Call) -> bool:
        """Count the call if it matches, and say whether the effect is for it."""
        fits = (
            not self.lifted
            and call.operation in self.operations
            and (self.of is None or call.of is self.of)
            and (self.run is None or call.run == self.run)
        )
        if not fits:
            return False
        before = self.hits
        self.matched += 1
        return self.hits > before


class Rules:
    """All rules of a peer. Safe to use from several threads."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._lock = threading.Lock()

    def add(self, rule: Rule) -> Rule:
        """Rules apply in the order they were added."""
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def effects(self, call: Call, when: When) -> list[Effect]:
        """What happens to this call at this moment; counts it."""
        with self._lock:
            return [rule.effect for rule in self._rules if rule.when is when and rule.befalls(call)]
