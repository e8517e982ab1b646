"""Many items of feedback while gateway and operator are killed at random, and what must hold afterwards."""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from pydantic import JsonValue

from claas_contract.outcome import FailureReason
from claas_gateway.feedback.wire import FeedbackResponse, ItemDetail
from claas_gateway.records import ItemState
from claas_kube.resources import ADAPTERS, DISTILL_JOBS, SECRETS
from tests.builders.gateway_records import build_rollout
from tests.simulation.gateway_process import GatewayProcess
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import Scene
from tests.simulation.trainer import Ending, Moment, Script

NAMES = ("tone", "brief")
CLIENTS = 4
ROLLOUTS = 20
_LABEL = "claas.dev/feedback-batch"


@dataclass(frozen=True)
class Pace:
    """How often what is killed, in seconds between two kills (least and most)."""

    gateway: tuple[float, float] = (1.0, 5.0)
    operator: tuple[float, float] = (6.0, 15.0)


@dataclass
class Outcome:
    """What became of the items."""

    items: dict[str, ItemDetail] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    jobs: int = 0
    versions: int = 0

    def __str__(self) -> str:
        states = Counter(item.reason or item.state.value for item in self.items.values())
        return (
            f"{len(self.items)} items in {self.seconds:.0f} s, {self.jobs} jobs, {self.versions} versions,"
            f" kills {dict(self.kills)}, ends {dict(states)}"
        )


class _SomeIds(frozenset[str]):
    """One in fifty identifiers."""

    def __contains__(self, name: object) -> bool:
        return zlib.crc32(str(name).encode()) % 50 == 0


class ManyItems:
    """One run: `count` items, sent by a few clients that repeat what was not answered."""

    def __init__(
        self, scene: Scene, operator: OperatorProcess, folder: Path, count: int, pace: Pace, seed: int
    ) -> None:
        self._scene = scene
        self._operator = operator
        self._count = count
        self._pace = pace
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._sent = threading.Semaphore(0)
        settings = {"CLAAS_GATEWAY_FEEDBACK_WAIT_SECONDS": "2"}
        self.gateway = GatewayProcess(scene.simulation.cluster, folder, [scene.namespace], settings=settings)
        self.outcome = Outcome()

    def run(self, timeout_seconds: float) -> Outcome:
        """Send everything, wait until each item has come to its end, and look at all of them."""
        scene = self._scene
        self.gateway.keep(
            [
                build_rollout(f"ro-{adapter}-{number}", namespace=scene.namespace, adapter=adapter)
                for adapter in NAMES
                for number in range(ROLLOUTS)
            ]
        )
        scene.simulation.usual[scene.namespace] = self._script
        scene.serve()
        for adapter in NAMES:
            scene.ready_adapter(adapter)
            scene.merge(ADAPTERS, adapter, {"spec": {"feedback": {"windowSeconds": 1}}})
        self.gateway.start_ready()
        began = time.monotonic()
        killing = threading.Thread(target=self._kill)
        killing.start()
        try:
            with ThreadPoolExecutor(CLIENTS) as clients:
                per_client = self._count // CLIENTS
                sent = [clients.submit(self._client, number, per_client) for number in range(CLIENTS)]
                requests = [request for each in sent for request in each.result(timeout_seconds)]
                ends = began + timeout_seconds
                for one in clients.map(lambda request: self._until_final(request, ends), requests):
                    self.outcome.items |= one
        finally:
            self._over.set()
            killing.join()
        self.outcome.seconds = time.monotonic() - began
        self.outcome.jobs = len(scene.objects(DISTILL_JOBS, _LABEL))
        return self.outcome

    def close(self) -> None:
        """End the gateway."""
        if self.gateway.running:
            self.gateway.stop()

    def check(self) -> None:
        """Each item is in exactly one version, or refused with a reason; the gateway and the versions agree."""
        assert len(self.outcome.items) == self._count
        learned: dict[str, list[tuple[str, int]]] = {}
        for adapter in NAMES:
            folder = self._scene.adapter(adapter).storage_path
            for version in self._scene.simulation.volume.versions(self._scene.namespace, folder):
                self.outcome.versions += 1
                for name in self._scene.simulation.volume.feedback_ids(self._scene.namespace, folder, version.number):
                    learned.setdefault(name, []).append((adapter, version.number))
        twice = {name: places for name, places in learned.items() if len(places) > 1}
        assert twice == {}
        told = {
            name: (item.adapter, item.version)
            for name, item in self.outcome.items.items()
            if item.state is ItemState.IN_VERSION
        }
        assert told == {name: places[0] for name, places in learned.items()}
        refused = {name: item for name, item in self.outcome.items.items() if name not in told}
        assert {item.state for item in refused.values()} <= {ItemState.REFUSED}
        assert all(item.reason for item in refused.values())
        self._scene.wait("no samples left", lambda: not self._scene.objects(SECRETS, _LABEL), 40)
        for adapter in NAMES:
            place = f"{self.gateway.url}/v1/versions/{adapter}"
            for number in {version for at, version in told.values() if at == adapter}:
                items = httpx.get(f"{place}/{number}/feedback", timeout=30).json()["items"]
                assert {item["id"] for item in items} == {
                    name for name, places in learned.items() if places[0] == (adapter, number)
                }

    def _script(self) -> Script:
        """Most steps succeed; some attempts die, some jobs fail for good."""
        chance = self._random.random()
        moment = self._random.choice(list(Moment))
        if chance < 0.05:
            return Script(ending=Ending.FAIL, moment=Moment.ASLEEP, reason=FailureReason.POLICY_MOVED)
        if chance < 0.10:
            return Script(ending=Ending.DIE, moment=moment, prepare_seconds=0.02)
        return Script(prepare_seconds=0.02, step_seconds=0.02, invalid_ids=_SomeIds())

    def _kill(self) -> None:
        """Kill the one or the other, now and then, and start it again."""
        chance = random.Random(self._random.random())
        due = {"gateway": chance.uniform(*self._pace.gateway), "operator": chance.uniform(*self._pace.operator)}
        began = time.monotonic()
        while not self._over.is_set():
            name = min(due, key=lambda each: due[each])
            if self._over.wait(max(0.0, began + due[name] - time.monotonic())):
                break
            process: GatewayProcess | OperatorProcess = self.gateway if name == "gateway" else self._operator
            process.kill()
            self.outcome.kills[name] += 1
            self._over.wait(chance.uniform(0, 0.5))
            killed = time.monotonic()
            if name == "gateway":
                self.gateway.start_ready()
            else:
                self._operator.start_leading()
            # On a busy machine a start takes long, and so does the work between two kills.
            pace = self._pace.gateway if name == "gateway" else self._pace.operator
            now = time.monotonic()
            due[name] = now - began + chance.uniform(*pace) + (now - killed)

    def _client(self, number: int, count: int) -> list[str]:
        """Send so many items in requests of some; the requests' identifiers."""
        chance = random.Random(f"{number}-{self._count}")
        requests: list[str] = []
        sent = 0
        while sent < count:
            size = min(count - sent, chance.choice([1, 4, 10, 20]))
            adapter = chance.choice(NAMES)
            body: JsonValue = {
                "requests": [
                    {
                        "lora_id": adapter,
                        "rollout_id": f"ro-{adapter}-{chance.randrange(ROLLOUTS)}",
                        "feedback": f"Wish {sent + place} of client {number}.",
                    }
                    for place in range(size)
                ]
            }
            headers = {"Idempotency-Key": f"client-{number}-{sent}"}
            # A step of its own for each is more than a run has time for.
            if size > 1 or chance.random() < 0.5:
                headers["Prefer"] = "respond-async"
            requests.append(str(_answered("POST", self._url, body, headers)["request_id"]))
            sent += size
        return requests

    @property
    def _url(self) -> str:
        return f"{self.gateway.url}/v1/feedback"

    def _until_final(self, request: str, ends: float) -> dict[str, ItemDetail]:
        while True:
            told = FeedbackResponse.model_validate(_answered("GET", f"{self._url}/{request}"))
            if all(item.state in (ItemState.IN_VERSION, ItemState.REFUSED) for item in told.items):
                break
            assert time.monotonic() < ends, f"{request} is not final: {told.items}"
            time.sleep(0.5)
        found: dict[str, ItemDetail] = {}
        for item in told.items:
            detail = ItemDetail.model_validate(_answered("GET", f"{self._url}/{item.id}"))
            found[item.id] = detail
            assert (detail.state, detail.version) == (item.state, item.version)
        return found


def _answered(
    method: str, url: str, body: JsonValue = None, headers: Mapping[str, str] | None = None
) -> Mapping[str, JsonValue]:
    """Ask until there is an answer; a step that failed is one."""
    for _ in range(600):
        try:
            answer = httpx.request(method, url, json=body, headers=headers, timeout=30)
        except httpx.TransportError:
            time.sleep(0.1)
            continue
        if answer.is_success or (answer.status_code in (422, 500) and "request_id" in answer.json()):
            document: Mapping[str, JsonValue] = answer.json()
            return document
        assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE, answer.text
        time.sleep(0.1)
    raise AssertionError("the gateway does not answer")
