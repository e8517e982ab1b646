"""What is known of adapters' servers on Modal, and the calls that are under way.

A call may last minutes, while a container starts. So each is a task beside the passes; its end wakes the adapter, or
the Lease, for whose pass it was begun.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from weakref import WeakValueDictionary

from claas_kube.objects.meta import ObjectMeta
from claas_operator.clients.modal.service import ModalError, ModalService, PointerMovedError, ServiceSource
from claas_operator.keys import Key, Kind
from claas_operator.plan.modal import state as states
from claas_operator.plan.modal.pointer import ModalServer, ServedPointer
from claas_operator.plan.modal.state import ModalCall, ModalState, ModalTrouble, Removal
from claas_operator.plan.serving_lease import ServedName, lease_name

log = logging.getLogger(__name__)

CALLS_AT_ONCE = 16
"""Of Modal's API. An operator that starts looks at every adapter."""


@dataclass
class _Served:
    """One adapter's."""

    uid: str
    state: ModalState
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class ModalApps:
    """The memory of all adapters with a server on Modal."""

    def __init__(self, source: ServiceSource, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._source = source
        self._clock = clock
        self._service: ModalService | None = None
        self._loading = asyncio.Lock()
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self._served: dict[tuple[str, str], _Served] = {}
        self._removals: dict[tuple[str, str], Removal] = {}
        """By the UIDs of a served name's Lease and of its adapter: one that is made again takes the Lease over."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self.wake: Callable[[Key], None] = lambda key: None
        """Called with the key whose call has ended."""
        self.decided: Callable[[bool], None] = lambda served: None
        """Called when a version has answered, or is refused."""

    def state(self, adapter: ObjectMeta) -> ModalState:
        """What is known for an adapter."""
        return self._of(adapter).state

    def removal(self, served: ServedName) -> Removal:
        """What has become of the removal of a pointer."""
        return self._removals.get(_removal_key(served), Removal())

    def failing(self, namespace: str, name: str) -> bool:
        """Whether the containers refuse the version of an adapter."""
        known = self._served.get((namespace, name))
        setback = known.state.setback if known is not None else None
        return setback is not None and setback.trouble is ModalTrouble.REFUSED

    def look(self, adapter: ObjectMeta, server: ModalServer, served_name: str) -> None:
        """Begin to look at pointer and address."""

        async def call(service: ModalService, state: Callable[[], ModalState]) -> ModalState:
            async with self._slots:
                found = await service.look(adapter.namespace, server, served_name)
            return states.after_look(state(), found.pointer, found.url, self._clock())

        self._begin(adapter, ModalCall.LOOK, call)

    def point(self, adapter: ObjectMeta, server: ModalServer, pointer: ServedPointer) -> None:
        """Begin to write the pointer."""

        async def call(service: ModalService, state: Callable[[], ModalState]) -> ModalState:
            async with self._slots, self._writer(server.place.app, pointer.served_name):
                await service.point(adapter.namespace, server.place, pointer)
            log.info("%s: %s is to serve version %s", _name(adapter), server.place.app, pointer.version)
            return states.after_writing(state(), pointer, self._clock())

        self._begin(adapter, ModalCall.POINT, call)

    def confirm(self, adapter: ObjectMeta, server: ModalServer, pointer: ServedPointer, url: str | None) -> None:
        """Begin to ask whether the version answers."""

        async def call(service: ModalService, state: Callable[[], ModalState]) -> ModalState:
            try:
                answer = await service.confirm(adapter.namespace, server, pointer, url)
            except PointerMovedError as moved:
                return states.after_look(state(), moved.found, state().url, self._clock())
            except ModalError as error:
                if error.trouble is not ModalTrouble.REFUSED:
                    raise
                self.decided(False)
                log.warning("%s: version %s is refused: %s", _name(adapter), pointer.version, error)
                return states.after_setback(state(), error.trouble, str(error), self._clock(), refused=pointer)
            self.decided(True)
            log.info("%s: version %s answers at %s", _name(adapter), pointer.version, answer.url)
            return states.after_answer(state(), pointer, answer.url, answer.containers)

        self._begin(adapter, ModalCall.CONFIRM, call)

    def remove(self, served: ServedName) -> None:
        """Begin to remove the pointer of an adapter that is gone."""
        place, before = served.record.modal, self.removal(served)
        if place is None or before.calling or before.done:
            return
        self._removals[_removal_key(served)] = Removal(calling=True, setback=before.setback)

        async def run() -> None:
            removal = before
            try:
                service = await self._loaded()
                async with self._slots, self._writer(place.app, served.served_name):
                    await service.remove(served.namespace, place, served.served_name, served.record.adapter_uid)
                log.info("%s is not served by %s any more", served.served_name, place.app)
                removal = Removal(done=True)
            except ModalError as error:
                log.warning("the pointer of %s could not be removed: %s", served.served_name, error)
                removal = states.after_failed_removal(before, error.trouble, str(error), self._clock())
            except Exception as error:
                said = f"{type(error).__name__}"
                removal = states.after_failed_removal(before, ModalTrouble.SERVICE_UNREACHABLE, said, self._clock())
                log.exception("the pointer of %s could not be removed", served.served_name)
            finally:
                self._removals[_removal_key(served)] = removal
                self.wake(Key(Kind.LEASE, served.namespace, lease_name(served.deployment)))

        self._start(run())

    def forget(self, namespace: str, name: str) -> None:
        """The adapter is gone, or its servers are in the cluster."""
        known = self._served.pop((namespace, name), None)
        if known is not None and known.task is not None:
            known.task.cancel()

    def forget_removal(self, served: ServedName) -> None:
        """The record of the served name is deleted."""
        self._removals.pop(_removal_key(served), None)

    async def close(self) -> None:
        """End all calls."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._service is not None:
            await self._service.close()

    def _of(self, adapter: ObjectMeta) -> _Served:
        key = (adapter.namespace, adapter.name)
        known = self._served.get(key)
        if known is None or known.uid != adapter.uid:
            self.forget(*key)
            known = self._served[key] = _Served(adapter.uid, ModalState(adapter.generation))
        if known.state.generation != adapter.generation:
            if known.task is not None:
                known.task.cancel()
            known.state = states.of_new_spec(known.state, adapter.generation)
        return known

    def _begin(
        self,
        adapter: ObjectMeta,
        call: ModalCall,
        run: Callable[[ModalService, Callable[[], ModalState]], Awaitable[ModalState]],
    ) -> None:
        """Begin a call, in place of one that is under way."""
        known = self._of(adapter)
        if known.task is not None:
            known.task.cancel()
        known.state = states.begun(known.state, call)
        key = Key(Kind.ADAPTER, adapter.namespace, adapter.name)

        async def task() -> None:
            try:
                after = await run(await self._loaded(), lambda: known.state)
            except ModalError as error:
                after = states.after_setback(known.state, error.trouble, str(error), self._clock())
            except Exception as error:
                said = f"the operator failed to ask Modal ({type(error).__name__}): see its log"
                after = states.after_setback(known.state, ModalTrouble.SERVICE_UNREACHABLE, said, self._clock())
                log.exception("%s: %s", _name(adapter), said)
            if known.task is mine:
                known.state, known.task = after, None
                self.wake(key)

        mine = known.task = self._start(task())

    def _start(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _loaded(self) -> ModalService:
        async with self._loading:
            if self._service is None:
                self._service = await self._source()
            return self._service

    @asynccontextmanager
    async def _writer(self, app: str, served_name: str) -> AsyncIterator[None]:
        """One that writes or removes a pointer at a time: a removal looks whose it is first. Of all namespaces, which
        a Volume does not know."""
        key = (app, served_name)
        lock = self._writers.get(key)
        if lock is None:
            lock = self._writers[key] = asyncio.Lock()
        async with lock:
            yield


def _name(adapter: ObjectMeta) -> str:
    return f"LoraAdapter {adapter.namespace}/{adapter.name}"


def _removal_key(served: ServedName) -> tuple[str, str]:
    return served.uid, served.record.adapter_uid
