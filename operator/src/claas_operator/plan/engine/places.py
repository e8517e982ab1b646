"""Places for steps that are computed elsewhere: so many run at once in all namespaces, whatever they are of, and
adapters take turns in them. First comes the adapter whose last step was begun longest ago."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from claas_operator.plan.queueing import EARLIEST


@dataclass(frozen=True)
class WaitingAdapter:
    """An adapter with a job that waits, and no step under way."""

    namespace: str
    name: str
    last_granted: datetime | None
    """When its last step was begun; None: it is not known to have had one."""
    first_created: datetime | None
    """When the first of its waiting jobs was created."""

    @property
    def order(self) -> tuple[datetime, datetime, str, str]:
        """Sort key of the turns."""
        return (self.last_granted or EARLIEST, self.first_created or EARLIEST, self.namespace, self.name)


@dataclass(frozen=True)
class Places:
    """How full they are, for one adapter."""

    most: int
    taken: int
    """Steps that run now, of other adapters."""
    ahead: int
    """Adapters whose turn comes earlier; 0 while all places are taken."""

    @property
    def free(self) -> bool:
        """Whether there is a place for this adapter's step."""
        return self.taken + self.ahead < self.most


def places_for(mine: WaitingAdapter, others: Iterable[WaitingAdapter], taken: int, most: int) -> Places:
    """The places, as they are for one of the waiting adapters."""
    return Places(most, taken, sum(other.order < mine.order for other in others))
