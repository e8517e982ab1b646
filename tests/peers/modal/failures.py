"""What a test can order to go wrong, at which RPC, how often."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from time import monotonic

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.peers.modal.private import RETRY_POLICY, rpc_names


@dataclass
class Rpc:
    """One request as it arrived."""

    name: str
    """The RPC, as the client's protocol calls it: FunctionMap, VolumeCommit, ..."""
    of: str = ""
    """The function, class, Volume or Secret that it is about, as the app calls it; for other requests of a container
    the function that it runs; empty where none is named."""
    container: str | None = None
    """The container that asks; None for a client."""
    call_id: str | None = None
    """The function call that it is about."""
    status: Status | None = None
    """How it was answered; None while there is no answer."""
    at: float = field(default_factory=monotonic)


class When(Enum):
    """The moments of an RPC at which something can happen."""

    RECEIVED = auto()
    """Before anything was done about it."""
    DONE = auto()
    """It was done; the answer is not sent yet."""


@dataclass(frozen=True)
class Refuse:
    """Answer with this gRPC status; what was done stays done."""

    status: Status
    message: str = "ordered failure"
    retry_after_s: float | None = None
    """Ask the client to try again after so long."""

    def error(self) -> GRPCError:
        details = None if self.retry_after_s is None else [RETRY_POLICY(retry_after_secs=self.retry_after_s)]
        return GRPCError(self.status, self.message, details)


@dataclass(frozen=True)
class Cut:
    """The service is gone for clients: all connections break and new ones are refused. Containers go on."""

    seconds: float | None = None
    """How long; None until the peer's `come_back`."""


@dataclass(frozen=True)
class Slow:
    """Wait this many seconds first."""

    seconds: float


@dataclass(frozen=True)
class KillContainer:
    """Kill the container that asks, as a crash does: its input runs again in another one."""


@dataclass(frozen=True)
class Do:
    """Call the test's function (in a thread of the peer), and go on when it returns."""

    function: Callable[[Rpc], None]


class Fate(Enum):
    """How a call ends that never runs."""

    LOST = auto()
    """InternalFailure: its container was lost for good."""
    TIMED_OUT = auto()
    """FunctionTimeoutError."""
    EXPIRED = auto()
    """OutputExpiredError: its result is gone."""
    UNKNOWN = auto()
    """NotFoundError: nobody knows the call any more."""


@dataclass(frozen=True)
class EndCall:
    """For FunctionMap: take the call and never run it."""

    fate: Fate


Effect = Refuse | Cut | Slow | KillContainer | Do | EndCall

SPENT = Refuse(Status.RESOURCE_EXHAUSTED, "workspace billing cycle spend limit reached")
UNPAID = Refuse(Status.PERMISSION_DENIED, "please add a payment method to the workspace's billing settings")
THROTTLED = Refuse(Status.RESOURCE_EXHAUSTED, "rate limit exceeded", retry_after_s=1.0)
COMMIT_REFUSED = Refuse(Status.FAILED_PRECONDITION, "volume commit failed")
OUT_OF_ORDER = Refuse(Status.UNAVAILABLE, "service temporarily unavailable")


@dataclass
class Rule:
    """An effect and the RPCs that it befalls: `times` of them from the `first` on that matches, None for ever."""

    rpcs: frozenset[str]
    effect: Effect
    when: When = When.RECEIVED
    first: int = 1
    times: int | None = None
    of: str | None = None
    matched: int = 0
    lifted: bool = False

    def __post_init__(self) -> None:
        unknown = self.rpcs - rpc_names()
        if unknown:
            raise ValueError(f"the client has no RPC {', '.join(sorted(unknown))}")

    @property
    def hits(self) -> int:
        """How many RPCs it befell."""
        after = max(0, self.matched - self.first + 1)
        return after if self.times is None else min(after, self.times)

    def lift(self) -> None:
        """Let nothing more go wrong by this rule."""
        self.lifted = True

    def befalls(self, rpc: Rpc) -> bool:
        """Count the RPC if it matches, and say whether the effect is for it."""
        if self.lifted or rpc.name not in self.rpcs or (self.of is not None and rpc.of != self.of):
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

    def effects(self, rpc: Rpc, when: When) -> list[Effect]:
        """What happens to this RPC at this moment; counts it."""
        with self._lock:
            return [rule.effect for rule in self._rules if rule.when is when and rule.befalls(rpc)]
