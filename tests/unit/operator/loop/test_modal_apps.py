"""Passes over adapters on Modal: calls beside them, one at a time for each adapter, and none where all is well."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from claas_crds.v1alpha1.conditions import condition_of
from claas_crds.v1alpha1.version import AdapterVersion, VersionVerdict
from claas_kube.api import Api
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import AdapterObject
from claas_kube.resources import ADAPTERS, CLAIMS, DEPLOYMENTS, LEASES, SECRETS
from claas_operator.clients.modal.apps import ModalApps
from claas_operator.keys import Key, Kind
from claas_operator.loop.reconcile import Reconciler
from claas_operator.plan.modal.state import ModalTrouble
from claas_operator.plan.serving_lease import ServedName, ServedRecord, served_lease_name
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.modal.small import SmallModal
from tests.builders.modal.world import URL, address, modal_adapter, modal_server, on_volume, pointer
from tests.builders.reconciler import reconciler_of
from tests.builders.world import NAMESPACE

ZERO, ONE = on_volume(0), on_volume(1, parent=0)
SECRET_TEXTS = {"claas-modal": ("token-id", "token-secret"), "claas-modal-proxy": ("key", "secret")}
LEASE = Key(Kind.LEASE, NAMESPACE, "claas-serving-claas-vllm.modal")


@dataclass
class Cluster:
    """An API server, Modal, and an operator."""

    small: SmallApi
    api: Api
    modal: SmallModal
    reconciler: Reconciler

    def put(self, adapter: AdapterObject) -> None:
        self.small.put(ADAPTERS, NAMESPACE, adapter.model_dump(mode="json", by_alias=True, exclude_none=True))

    def restart(self) -> None:
        """Another operator, which knows nothing."""
        self.reconciler = reconciler_of(self.api, modal=self.modal.source())

    def adapter(self, name: str = "tone") -> AdapterObject:
        return AdapterObject.model_validate(self.small.found(ADAPTERS, NAMESPACE, name))

    async def settle(self, *keys: Key) -> None:
        """Some passes, and the calls that they begin."""
        for _ in range(5):
            await self._round(keys)

    async def until(self, holds: Callable[[], bool], *keys: Key) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await self._round(keys)

    async def _round(self, keys: tuple[Key, ...]) -> None:
        for key in keys or (Key(Kind.ADAPTER, NAMESPACE, "tone"),):
            await self.reconciler.reconcile(key)
        await asyncio.sleep(0.002)

    def ready(self, name: str = "tone") -> str:
        found = condition_of(self.adapter(name).status.conditions, "Ready")
        return found.reason if found is not None else ""


@asynccontextmanager
async def cluster(*versions: AdapterVersion, served: int | None = None) -> AsyncIterator[Cluster]:
    small, modal = SmallApi(), SmallModal()
    small.put(CLAIMS, NAMESPACE, {"metadata": {"name": "adapters"}})
    for name, keys in SECRET_TEXTS.items():
        data: Manifest = {key: base64.b64encode(b"secret-text").decode() for key in keys}
        small.put(SECRETS, NAMESPACE, {"metadata": {"name": name}, "data": data})
    async with serving_api(small) as api:
        made = Cluster(small, api, modal, reconciler_of(api, modal=modal.source()))
        made.put(modal_adapter(*versions, served=served))
        yield made


async def test_a_version_is_pointed_to_confirmed_and_then_left_in_peace() -> None:
    async with cluster(ZERO) as made:
        await made.until(lambda: made.ready() == "Serving")
        assert made.modal.counted() == {"look": 1, "point": 1, "confirm": 1}
        assert made.modal.pointers == {("claas-vllm", "tone"): pointer(ZERO)}
        status = made.adapter().status
        assert (status.served_version, status.serving_url, status.ready_replicas) == (0, URL, "1/1")
        await made.settle()
        assert made.modal.counted() == {}
        # Nor does an operator that starts anew wake a container.
        made.restart()
        await made.settle()
        assert made.modal.counted() == {"look": 1}
        assert made.ready() == "Serving"
        assert not [path for _, path in made.small.asked if path.startswith(DEPLOYMENTS.path(NAMESPACE, ""))]


async def test_an_operator_that_dies_between_pointer_and_answer_is_replaced_by_one_that_asks_on() -> None:
    async with cluster(ZERO, ONE, served=0) as made:
        made.modal.held = asyncio.Event()
        await made.until(lambda: made.modal.at_once == 1)
        made.restart()
        made.modal.held.set()
        await made.until(lambda: made.ready() == "Serving")
        assert made.modal.counted() == {"look": 2, "point": 1, "confirm": 2}
        assert made.adapter().status.served_version == 1


async def test_an_answer_that_takes_minutes_holds_up_no_pass_and_a_newer_version_does_not_wait_for_it() -> None:
    async with cluster(ZERO) as made:
        made.modal.held = asyncio.Event()
        await made.until(lambda: made.modal.at_once == 1)
        assert made.ready() == "Loading"
        found = made.adapter()
        status = found.status.model_copy(update={"versions": [ZERO, ONE], "latest_version": 1})
        made.put(found.model_copy(update={"status": status}))
        await made.until(lambda: made.modal.pointers["claas-vllm", "tone"].version == 1)
        assert made.modal.most_at_once == 1
        made.modal.held.set()
        await made.until(lambda: made.ready() == "Serving")
        assert made.adapter().status.served_version == 1


async def test_a_refused_version_is_rejected_told_and_the_pointer_goes_back() -> None:
    async with cluster(ZERO, ONE, served=0) as made:
        made.modal.refused.add(address(1))
        await made.until(lambda: made.ready() == "Serving")
        status = made.adapter().status
        assert [each.verdict for each in status.versions] == [VersionVerdict.SERVED, VersionVerdict.REJECTED]
        assert (status.served_version, status.latest_version) == (0, 0)
        assert made.modal.pointers == {("claas-vllm", "tone"): pointer(ZERO)}
        events = [found for path, found in made.small.objects.items() if "/events/" in path]
        assert any("rank 64" in str(event) for event in events)


async def test_the_pointer_of_an_adapter_that_was_deleted_while_nobody_looked_is_removed() -> None:
    async with cluster(ZERO) as made:
        await made.until(lambda: made.ready() == "Serving")
        made.small.remove(ADAPTERS, NAMESPACE, "tone")
        made.restart()
        await made.until(lambda: not made.modal.pointers, LEASE)
        record = LEASES.path(NAMESPACE, served_lease_name("claas-vllm.modal", "tone"))
        await made.until(lambda: record not in made.small.objects, LEASE)
        await made.until(lambda: LEASES.path(NAMESPACE, LEASE.name) not in made.small.objects, LEASE)


async def test_the_pointer_of_an_adapter_that_was_made_again_is_removed_with_it_too() -> None:
    async with cluster(ZERO) as made:
        await made.until(lambda: made.ready() == "Serving")
        made.small.remove(ADAPTERS, NAMESPACE, "tone")
        await made.reconciler.reconcile(LEASE)
        await made.until(lambda: not made.modal.pointers)
        # Before the record of the first one is deleted it becomes that of the second.
        again = modal_adapter(ZERO)
        made.put(again.model_copy(update={"metadata": again.metadata.model_copy(update={"uid": "uid-of-another"})}))
        await made.until(lambda: bool(made.modal.pointers))
        await made.until(lambda: made.ready() == "Serving")
        made.small.remove(ADAPTERS, NAMESPACE, "tone")
        await made.until(lambda: not made.modal.pointers, LEASE)


async def test_the_record_stays_while_the_pointer_can_not_be_removed() -> None:
    async with cluster(ZERO) as made:
        await made.until(lambda: made.ready() == "Serving")
        made.small.remove(ADAPTERS, NAMESPACE, "tone")
        made.modal.trouble = ModalTrouble.SERVICE_UNREACHABLE
        made.modal.counted()
        await made.settle(LEASE)
        assert made.modal.counted() == {"remove": 1}
        assert LEASES.path(NAMESPACE, served_lease_name("claas-vllm.modal", "tone")) in made.small.objects


async def test_the_pointer_of_an_adapter_in_another_namespace_is_left_alone() -> None:
    async with cluster(ZERO) as made:
        other = modal_adapter(ZERO)
        metadata = other.metadata.model_copy(update={"namespace": "others", "uid": "uid-of-another"})
        theirs = other.model_copy(update={"metadata": metadata})
        made.small.put(ADAPTERS, "others", theirs.model_dump(mode="json", by_alias=True, exclude_none=True))
        made.modal.pointers["claas-vllm", "tone"] = pointer(ZERO, theirs)
        await made.until(lambda: made.ready() == "ServedNameTaken")
        assert made.modal.counted() == {"look": 1}
        # Once that adapter is gone the name is free.
        made.small.remove(ADAPTERS, "others", "tone")
        await made.until(lambda: made.ready() == "Serving")
        assert made.modal.pointers["claas-vllm", "tone"].adapter_uid == "uid-of-tone"


async def test_a_pointer_is_not_written_while_one_of_another_namespace_is_removed() -> None:
    modal = SmallModal(removing=asyncio.Event())
    assert modal.removing is not None
    modal.pointers["claas-vllm", "tone"] = pointer(ZERO)
    apps = ModalApps(modal.source())
    record = ServedRecord(adapter_name="tone", adapter_uid="uid-of-tone", port=8000, modal=modal_server().place)
    apps.remove(
        ServedName(
            namespace="others", deployment="claas-vllm.modal", served_name="tone", record=record, uid="uid-of-lease"
        )
    )
    again = modal_adapter(ZERO)
    again = again.model_copy(update={"metadata": again.metadata.model_copy(update={"uid": "uid-of-another"})})
    apps.point(again.metadata, modal_server(), pointer(ZERO, again))
    for _ in range(10):
        await asyncio.sleep(0)
    modal.removing.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert modal.pointers == {("claas-vllm", "tone"): pointer(ZERO, again)}
    await apps.close()


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (ModalTrouble.NOT_DEPLOYED, "AppNotDeployed"),
        (ModalTrouble.CREDENTIALS_REFUSED, "CredentialsRefused"),
        (ModalTrouble.BILLING_REQUIRED, "BillingRequired"),
        (ModalTrouble.SERVICE_UNREACHABLE, "ServiceUnreachable"),
    ],
)
async def test_what_modal_refuses_is_told_and_tried_again_with_a_back_off(trouble: ModalTrouble, reason: str) -> None:
    async with cluster(ZERO) as made:
        made.modal.trouble = trouble
        await made.until(lambda: made.ready() == reason)
        await made.settle()
        assert made.modal.counted() == {"look": 1}


async def test_many_adapters_of_one_app_are_served_at_once() -> None:
    async with cluster() as made:
        names = [f"a{number}" for number in range(8)]
        for name in names:
            made.put(modal_adapter(ZERO, name=name))
        keys = [Key(Kind.ADAPTER, NAMESPACE, name) for name in names]
        made.modal.held = asyncio.Event()
        await made.until(lambda: made.modal.at_once == len(names), *keys)
        made.modal.held.set()
        await made.until(lambda: all(made.ready(name) == "Serving" for name in names), *keys)
        assert made.modal.counted() == {"look": 8, "point": 8, "confirm": 8}
        assert made.modal.loaded == 1


def test_an_operator_without_such_an_adapter_never_has_modals_client_in_memory() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import sys, claas_operator.__main__; print('modal' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "False"
