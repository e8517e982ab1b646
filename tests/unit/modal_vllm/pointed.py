"""A world for the follower: a Volume with pointers, a disk, and a vLLM, each of which can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from claas_bounded.waits import Deadline
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.pointers import Pointer, PointerList, Receipt, ReceiptOutcome, name_key
from claas_modal_vllm.errors import VersionFaultError, VllmFaultError
from claas_modal_vllm.follower import Follower
from claas_modal_vllm.plan import InService


def pointer(name: str, version: int, uid: str = "uid") -> Pointer:
    uid = f"{uid}-of-{name.replace('/', '-')}"
    return Pointer(
        served_name=name,
        adapter_uid=uid,
        version=version,
        weights=VolumeAddress("claas-adapters", f"adapters/{uid}/{version}-aa", f"{version:064x}"),
    )


def unreachable() -> ModalServiceError:
    return ModalServiceError(ModalFault.UNREACHABLE, "the Volume does not answer")


@dataclass
class World:
    """What exists, and what is broken. A pointer of None is there and can't be read."""

    now: float = 0.0
    pointers: dict[str, Pointer | None] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    written: int = 0
    """Receipts, also those that others replaced."""
    damaged: set[tuple[str, int]] = field(default_factory=set)
    """Versions whose files are not those of the address."""
    unusable: set[tuple[str, int]] = field(default_factory=set)
    """Versions that vLLM does not take."""
    odd: set[tuple[str, int]] = field(default_factory=set)
    """Versions at which the disk's or vLLM's client has a bug."""
    slow: set[tuple[str, int]] = field(default_factory=set)
    """Versions whose files do not arrive before `arrival`."""
    arrival: asyncio.Event = field(default_factory=asyncio.Event)
    volume_fails: bool = False
    volume_is_odd: bool = False
    """Its client has a bug."""
    receipts_fail: bool = False
    disk_fails: bool = False
    vllm_fails: bool = False
    served: dict[str, InService] = field(default_factory=dict)
    """By a vLLM that runs."""
    local: set[str] = field(default_factory=set)
    loads: list[tuple[str, int]] = field(default_factory=list)
    """All that vLLM was ever asked to load."""
    fetches: list[float] = field(default_factory=list)
    """When a version's files were asked for."""
    removals: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    """Paths of versions that are not served any more and still answer a request."""

    def restart(self) -> Follower:
        """Another container: nothing is loaded, nothing on its disk."""
        self.served, self.local, self.held = {}, set(), set()
        return self.follower()

    def follower(self) -> Follower:
        return Follower(
            PointersOf(self),
            FilesOf(self),
            VllmOf(self),
            container="ta-1",
            max_containers=2,
            clock=lambda: self.now,
            patience_seconds=0.01 if self.slow else 10.0,
        )

    def good(self, name: str, version: int) -> bool:
        return (name, version) not in self.damaged | self.unusable

    def version(self, name: str) -> int | None:
        return self.served[name].version if name in self.served else None

    def outcome(self, name: str) -> tuple[int, ReceiptOutcome] | None:
        receipt = self.receipts.get(name)
        return None if receipt is None else (receipt.version, receipt.outcome)


@dataclass
class PointersOf:
    world: World

    async def list(self, deadline: Deadline) -> PointerList:
        if self.world.volume_fails:
            raise unreachable()
        if self.world.volume_is_odd:
            raise RuntimeError("a private text")
        there = self.world.pointers.items()
        return PointerList(
            tuple(each for _, each in there if each is not None),
            frozenset(name_key(name) for name, each in there if each is None),
        )

    async def write_receipt(self, receipt: Receipt, deadline: Deadline) -> None:
        if self.world.volume_fails or self.world.receipts_fail:
            raise unreachable()
        self.world.receipts[receipt.served_name] = receipt
        self.world.written += 1


@dataclass
class FilesOf:
    world: World

    def path(self, pointer: Pointer) -> str:
        return f"/disk/{pointer.adapter_uid}/{pointer.version}"

    async def fetch(self, pointer: Pointer, deadline: Deadline) -> str:
        self.world.fetches.append(self.world.now)
        if self.world.volume_fails:
            raise unreachable()
        if self.world.disk_fails:
            raise OSError("the disk is full")
        if (pointer.served_name, pointer.version) in self.world.damaged:
            raise ModalServiceError(ModalFault.FILE_MISSING, "a file has another digest")
        if (pointer.served_name, pointer.version) in self.world.odd:
            raise RuntimeError("a private text")
        if (pointer.served_name, pointer.version) in self.world.slow:
            await self.world.arrival.wait()
        self.world.local.add(self.path(pointer))
        return self.path(pointer)

    async def all(self) -> list[str]:
        return list(self.world.local)

    async def forget(self, path: str) -> None:
        if self.world.disk_fails:
            raise OSError("the disk fails")
        self.world.local.remove(path)


@dataclass
class VllmOf:
    world: World

    async def served(self) -> Mapping[str, InService]:
        self._answer()
        return dict(self.world.served)

    async def loaded(self) -> frozenset[str]:
        self._answer()
        return frozenset({each.path for each in self.world.served.values()} | self.world.held)

    async def serve(self, pointer: Pointer, path: str) -> None:
        self._answer()
        assert path in self.world.local
        self.world.loads.append((pointer.served_name, pointer.version))
        if (pointer.served_name, pointer.version) in self.world.unusable:
            raise VersionFaultError("vLLM refused")
        self.world.served[pointer.served_name] = InService(pointer.version, path)

    async def remove(self, served_name: str) -> None:
        self._answer()
        self.world.removals.append(served_name)
        del self.world.served[served_name]

    def _answer(self) -> None:
        if self.world.vllm_fails:
            raise VllmFaultError("vLLM does not answer")
