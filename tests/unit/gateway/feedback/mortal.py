"""A gateway that dies after some of its calls: before the next one, as after SIGKILL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from claas_gateway.services import Services
from claas_gateway.store.interface import Store
from claas_kube.api import Api


class KilledError(Exception):
    """The process ends here."""


@dataclass
class Life:
    """How many calls to the API server and the store a gateway lives for."""

    calls: int

    def of(self, services: Services) -> Services:
        """The same services, for so long."""
        return replace(
            services, store=cast(Store, _Mortal(services.store, self)), api=cast(Api, _Mortal(services.api, self))
        )


class _Mortal:
    def __init__(self, part: object, life: Life) -> None:
        self._part = part
        self._life = life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if name in ("rollouts", "feedback", "batches", "history"):
            return _Mortal(found, self._life)
        return self._dying(found)

    def _dying(self, call: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def called(*args: object, **kwargs: object) -> object:
            self._life.calls -= 1
            if self._life.calls < 0:
                raise KilledError
            return await call(*args, **kwargs)

        return called
