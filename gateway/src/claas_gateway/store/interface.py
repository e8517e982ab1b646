"""What other rooms ask of the store. Whatever a call wrote is committed when it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from claas_gateway.records import (
    FeedbackBatch,
    FeedbackItem,
    FeedbackRequest,
    ItemOutcome,
    ItemState,
    ProbeScore,
    Rollout,
    ServiceChange,
    VersionSeen,
)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request for feedback, as it is stored. `repeated`: an earlier request with the same idempotency key."""

    request: FeedbackRequest
    items: tuple[FeedbackItem, ...]
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class ItemPage:
    """A page of items, newest first, and the number of all."""

    items: tuple[FeedbackItem, ...]
    total: int


@dataclass(frozen=True, slots=True)
class ItemFilter:
    """Which items a page shows; None: any. An item without a rating has none that is within bounds."""

    state: ItemState | None = None
    tag: str | None = None
    """One of the item's tags."""
    lowest_rating: float | None = None
    highest_rating: float | None = None


ANY_ITEM = ItemFilter()
"""All items."""


@dataclass(frozen=True, slots=True)
class AdapterHistory:
    """The short history of an adapter."""

    namespace: str
    adapter: str
    newest: VersionSeen | None
    """The version with the highest number."""
    served: int | None
    """The version that the last change of service put into service."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a deletion by user removed, and the versions that had learned from it."""

    rollouts: int
    items: int
    learned: tuple[tuple[str, str, int], ...]
    """Namespace, adapter and version."""
    learning: tuple[tuple[str, str, str], ...] = ()
    """Namespace, adapter and batch of what is in a batch now: a version may come that learned from it."""


class RolloutStore(Protocol):
    """Rollouts."""

    async def add(self, rollouts: Sequence[Rollout]) -> None:
        """Store the answers to one request. Concurrent calls share a commit."""
        ...

    async def get(self, rollout_id: str) -> Rollout | None:
        """One rollout."""
        ...

    async def find(
        self, namespace: str | None, adapter: str | None, answer_hash: str, prompt_hash: str | None
    ) -> Rollout | None:
        """The rollout that feedback is about: of those with that answer the newest one with that prompt, else the
        newest one. `adapter` None: of any adapter or base model; `namespace` None: of any namespace."""
        ...

    async def prompts(self, rollout_ids: Sequence[str]) -> Mapping[str, str]:
        """The user prompts of those that are still there, by rollout."""
        ...


class FeedbackStore(Protocol):
    """Requests that brought feedback, and their items."""

    async def accept(
        self, request: FeedbackRequest, items: Sequence[FeedbackItem], batches: Sequence[FeedbackBatch] = ()
    ) -> Accepted:
        """Store a request, its items and, for a synchronous one, its batch, in one transaction.

        The earlier request is answered for an idempotency key that was used before with the same body hash. Raises
        Conflicting for one that was used with another body.
        """
        ...

    async def request(self, request_id: str) -> Accepted | None:
        """A request with its items as they are now."""
        ...

    async def by_key(self, namespace: str, key_name: str, idempotency_key: str) -> Accepted | None:
        """The request that was stored under an idempotency key, with its items as they are now."""
        ...

    async def item(self, item_id: str) -> FeedbackItem | None:
        """One item."""
        ...

    async def items_of_version(self, namespace: str, adapter: str, version: int) -> Sequence[FeedbackItem]:
        """The items that a version learned from."""
        ...

    async def items_of_batch(self, batch_id: str) -> Sequence[FeedbackItem]:
        """The members of a batch, in the order of its samples."""
        ...

    async def page(
        self, namespace: str | None, adapter: str | None, page: int, per_page: int, only: ItemFilter = ANY_ITEM
    ) -> ItemPage:
        """Items, newest first; pages count from 1."""
        ...

    async def counts(self) -> Mapping[tuple[str, str], Mapping[ItemState, int]]:
        """How many items are in each state, by namespace and adapter. Cheap: dashboards ask often."""
        ...

    async def waiting(self, namespace: str, adapter: str) -> Sequence[FeedbackItem]:
        """Items that wait for a batch, oldest first."""
        ...

    async def waiting_adapters(self) -> Sequence[tuple[str, str]]:
        """Namespace and name of adapters that have items waiting."""
        ...

    async def refuse(self, outcomes: Sequence[ItemOutcome]) -> None:
        """Refuse items that are not final yet."""
        ...

    async def answered_after(self, item_id: str, answer: str) -> None:
        """Write down what the version that learned from an item answers to its prompt; of an item without texts
        nothing is written down."""
        ...


class BatchStore(Protocol):
    """Batches."""

    async def form(self, batch: FeedbackBatch, item_ids: Sequence[str]) -> bool:
        """Commit a batch with its members, in that order. False, and nothing is written, if one of them does not wait
        any more: another replica took it."""
        ...

    async def get(self, batch_id: str) -> FeedbackBatch | None:
        """One batch."""
        ...

    async def unaccounted(self, namespace: str | None = None, adapter: str | None = None) -> Sequence[FeedbackBatch]:
        """Batches that are not accounted for, oldest first; of one adapter, or of all."""
        ...

    async def submitted(self, batch_id: str, job_uid: str, at: datetime) -> None:
        """Its job exists: its members are in a job. Nothing happens to a batch that is accounted for."""
        ...

    async def progressed(self, batch_id: str, phase: str) -> None:
        """The phase of its job."""
        ...

    async def account(
        self, batch: FeedbackBatch, outcomes: Sequence[ItemOutcome], rest: FeedbackBatch | None = None
    ) -> bool:
        """Write down how its job ended and what became of each member, in one transaction. `rest` is a new batch of
        the members without an outcome, which train without the refused ones. False if it was accounted for
        already. Raises ValueError for members that get neither an outcome nor a place in `rest`."""
        ...

    async def recent(self, namespace: str | None, adapter: str | None, limit: int) -> Sequence[FeedbackBatch]:
        """Batches, newest first."""
        ...

    async def newest(self) -> Sequence[FeedbackBatch]:
        """The newest batch of each adapter."""
        ...


class HistoryStore(Protocol):
    """Versions and what was served when; outlives jobs, status and adapters."""

    async def saw_versions(self, versions: Sequence[VersionSeen]) -> None:
        """Write down versions, or what has changed of them; a serving gap that is None leaves the one that is
        known."""
        ...

    async def saw_served(self, change: ServiceChange) -> None:
        """Write down that another version is served, unless the last one written down is that one, or is of a later
        time."""
        ...

    async def add_score(self, score: ProbeScore) -> None:
        """Write down a score; an earlier one of that name for that version is replaced."""
        ...

    async def versions(self, namespace: str, adapter: str) -> Sequence[VersionSeen]:
        """All versions of an adapter, by number."""
        ...

    async def made_by(self, namespace: str, adapter: str, job: str) -> VersionSeen | None:
        """The version that a DistillJob of that name made."""
        ...

    async def changes(self, namespace: str, adapter: str) -> Sequence[ServiceChange]:
        """Changes of the served version, oldest first."""
        ...

    async def scores(self, namespace: str, adapter: str) -> Mapping[str, Sequence[ProbeScore]]:
        """Scores by name, by version."""
        ...

    async def adapters(self) -> Sequence[AdapterHistory]:
        """All adapters of which a version or a change of service is known, those that are gone too."""
        ...


class Store(Protocol):
    """The database."""

    @property
    def rollouts(self) -> RolloutStore:
        """Rollouts."""
        ...

    @property
    def feedback(self) -> FeedbackStore:
        """Feedback."""
        ...

    @property
    def batches(self) -> BatchStore:
        """Batches."""
        ...

    @property
    def history(self) -> HistoryStore:
        """Versions."""
        ...

    async def forget_user(self, namespace: str | None, adapter: str | None, user: str) -> Forgotten:
        """Delete rollouts and feedback of an end user, within what the caller may see: feedback on answers to them,
        and feedback that they gave. What waits for a batch is refused (RolloutDeleted). What is in a batch loses its
        texts here (`erased`): if its job is made already, it is trained on; a job that is made later leaves it
        out."""
        ...

    async def expire(self, before: datetime) -> int:
        """Delete rollouts that no open item needs, and texts of final items, from before that time; how many
        rows."""
        ...

    async def healthy(self) -> str | None:
        """None, or what is wrong with the database."""
        ...
