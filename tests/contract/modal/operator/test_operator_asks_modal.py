"""What the operator asks of Modal, by Modal's own client, of containers that follow pointers; and how that fails."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from grpclib.const import Status

from claas_kube.objects.meta import Manifest
from claas_kube.resources import SECRETS
from claas_modal_client.connection import ModalAccount, ModalConnection
from claas_modal_client.pointers import LATEST_RECEIPTS, receipt_folder
from claas_operator.clients.modal.platform import ModalPlatform
from claas_operator.clients.modal.service import ModalError, PointerMovedError, RefusedVersionError
from claas_operator.clients.reader import Reader
from claas_operator.plan.modal.pointer import ModalServer, ServedPointer
from claas_operator.plan.modal.state import ModalTrouble
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.modal.world import modal_adapter, modal_server, on_volume, pointer
from tests.builders.world import NAMESPACE
from tests.peers.modal.failures import SPENT, UNPAID, Refuse
from tests.simulation.modal.platform import PROXY_TOKEN, TOKEN, PlayedModal, played_modal

pytestmark = pytest.mark.contract

SERVER = modal_server()
PLACE = SERVER.place
FIRST_ANSWER_SECONDS = 60


@pytest.fixture(scope="module")
def modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayedModal]:
    with played_modal(tmp_path_factory.mktemp("modal")) as played:
        yield played


@asynccontextmanager
async def asking(
    modal: PlayedModal, token: dict[str, str] = TOKEN, proxy: dict[str, str] = PROXY_TOKEN
) -> AsyncIterator[tuple[ModalPlatform, SmallApi]]:
    small = SmallApi()
    for name, values in (("claas-modal", token), ("claas-modal-proxy", proxy)):
        data: Manifest = {key: base64.b64encode(text.encode()).decode() for key, text in values.items()}
        small.put(SECRETS, NAMESPACE, {"metadata": {"name": name}, "data": data})
    async with serving_api(small) as api:
        platform = ModalPlatform(Reader(api), modal.peer.url)
        try:
            yield platform, small
        finally:
            await platform.close()


def named(name: str, version: int = 0) -> ServedPointer:
    """A pointer of a name that no other test has."""
    found = modal_adapter(on_volume(version), name=name)
    return pointer(on_volume(version), found)


async def confirmed(platform: ModalPlatform, to: ServedPointer, url: str | None = None) -> int:
    """Ask until the version answers; how often it had to be asked."""
    async with asyncio.timeout(FIRST_ANSWER_SECONDS):
        for times in range(1, 1000):
            try:
                await platform.confirm(NAMESPACE, SERVER, to, url)
            except ModalError as error:
                if error.trouble is not ModalTrouble.NOT_YET:
                    raise
                await asyncio.sleep(0.3)
            else:
                return times
    raise AssertionError


async def trouble_of(call: Callable[[], Awaitable[object]]) -> ModalError:
    with pytest.raises(ModalError) as raised:
        await call()
    return raised.value


async def test_a_pointer_is_written_confirmed_moved_and_removed(modal: PlayedModal) -> None:
    async with asking(modal) as (platform, _):
        before = await platform.look(NAMESPACE, SERVER, "moved")
        assert before.pointer is None
        assert before.url == modal.peer.server_url("claas-vllm", "Vllm")
        await platform.point(NAMESPACE, PLACE, named("moved"))
        assert (await platform.look(NAMESPACE, SERVER, "moved")).pointer == named("moved")
        await confirmed(platform, named("moved"), before.url)
        await platform.point(NAMESPACE, PLACE, named("moved", 1))
        await confirmed(platform, named("moved", 1))
        # Neither another adapter's nor, twice, one's own.
        await platform.remove(NAMESPACE, PLACE, "moved", "uid-of-another")
        assert (await platform.look(NAMESPACE, SERVER, "moved")).pointer is not None
        for _ in range(2):
            await platform.remove(NAMESPACE, PLACE, "moved", "uid-of-moved")
            assert (await platform.look(NAMESPACE, SERVER, "moved")).pointer is None


async def test_no_look_wakes_a_container(modal: PlayedModal) -> None:
    async with asking(modal) as (platform, _):
        known = {container.id for container in modal.peer.containers(alive=False)}
        for _ in range(3):
            await platform.look(NAMESPACE, SERVER, "nobody")
        await platform.remove(NAMESPACE, PLACE, "nobody", "uid")
        assert {container.id for container in modal.peer.containers(alive=False)} == known


async def test_calls_that_begin_together_share_one_connection(
    modal: PlayedModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ModalConnection] = []

    def counted(account: ModalAccount) -> ModalConnection:
        made.append(ModalConnection(account))
        return made[-1]

    monkeypatch.setattr("claas_operator.clients.modal.platform.ModalConnection", counted)
    async with asking(modal) as (platform, _):
        await asyncio.gather(*(platform.look(NAMESPACE, SERVER, f"one-of-many-{number}") for number in range(4)))
    assert len(made) == 1


async def test_a_version_that_the_containers_refuse_is_told_with_their_words(modal: PlayedModal) -> None:
    modal.refuse("refused", 7)
    async with asking(modal) as (platform, _):
        await platform.point(NAMESPACE, PLACE, named("refused", 6))
        await confirmed(platform, named("refused", 6))
        await platform.point(NAMESPACE, PLACE, named("refused", 7))
        async with asyncio.timeout(FIRST_ANSWER_SECONDS):
            while True:
                error = await trouble_of(lambda: platform.confirm(NAMESPACE, SERVER, named("refused", 7), None))
                if isinstance(error, RefusedVersionError):
                    break
                await asyncio.sleep(0.3)
        assert "the adapter does not fit --max-lora-rank" in str(error)
        # The one before is served on.
        await platform.point(NAMESPACE, PLACE, named("refused", 6))
        await confirmed(platform, named("refused", 6))


async def test_only_the_latest_receipts_are_read(modal: PlayedModal) -> None:
    async with asking(modal) as (platform, _):
        await platform.point(NAMESPACE, PLACE, named("worn"))
        await confirmed(platform, named("worn"))
        folder = modal.peer.volume("claas-adapters") / receipt_folder("claas-vllm", "worn")
        latest = next(folder.iterdir())
        for number in range(2 * LATEST_RECEIPTS):
            old = folder / f"ta-old-{number}.json"
            old.write_text(latest.read_text())
            os.utime(old, (1000 + number, 1000 + number))
        before = modal.asked("VolumeGetFile2")
        assert await confirmed(platform, named("worn"), modal.peer.server_url("claas-vllm", "Vllm")) == 1
        assert modal.asked("VolumeGetFile2") - before == 2 * LATEST_RECEIPTS


async def test_a_pointer_that_somebody_has_removed_is_found_by_the_next_try(modal: PlayedModal) -> None:
    async with asking(modal) as (platform, _):
        await platform.point(NAMESPACE, PLACE, named("meddled"))
        await platform.remove(NAMESPACE, PLACE, "meddled", "uid-of-meddled")
        error = await trouble_of(lambda: platform.confirm(NAMESPACE, SERVER, named("meddled"), None))
        assert isinstance(error, PointerMovedError)
        assert error.found is None


async def test_a_version_of_an_earlier_adapter_of_the_name_is_not_taken_for_the_new_ones(modal: PlayedModal) -> None:
    async with asking(modal) as (platform, _):
        await platform.point(NAMESPACE, PLACE, named("again"))
        await confirmed(platform, named("again"))
        anew = replace(named("again"), weights=named("again").weights.replace("-a#", "-b#"))
        url = modal.peer.server_url("claas-vllm", "Vllm")
        error = await trouble_of(lambda: platform.confirm(NAMESPACE, SERVER, anew, url))
        assert "no container has said that it has loaded the version's files" in str(error)


OTHER_APP = PLACE.model_copy(update={"app": "not-there"})


@pytest.mark.parametrize(
    ("server", "says"),
    [
        (replace(SERVER, place=OTHER_APP), "deploy the app"),
        (replace(SERVER, server="Other"), "deploy the app"),
        (replace(SERVER, place=PLACE.model_copy(update={"volume": "not-there"})), "deploy the app"),
    ],
    ids=["app", "server", "volume"],
)
async def test_what_is_not_deployed_is_told(modal: PlayedModal, server: ModalServer, says: str) -> None:
    async with asking(modal) as (platform, _):
        error = await trouble_of(lambda: platform.look(NAMESPACE, server, "tone"))
        assert error.trouble is ModalTrouble.NOT_DEPLOYED
        assert says in str(error)


async def test_the_pointer_on_a_volume_that_is_gone_is_gone(modal: PlayedModal) -> None:
    async with asking(modal) as (platform, _):
        await platform.remove(NAMESPACE, PLACE.model_copy(update={"volume": "not-there"}), "tone", "uid")


async def test_a_wrong_token_is_told_and_a_right_one_used_at_once(modal: PlayedModal) -> None:
    wrong = {**TOKEN, "token-secret": "as-wrong-and-private"}
    async with asking(modal, token=wrong) as (platform, small):
        error = await trouble_of(lambda: platform.look(NAMESPACE, SERVER, "tone"))
        assert error.trouble is ModalTrouble.CREDENTIALS_REFUSED
        assert "spec.engine.modal.tokenSecretRef" in str(error)
        assert "as-wrong-and-private" not in str(error)
        data: Manifest = {key: base64.b64encode(text.encode()).decode() for key, text in TOKEN.items()}
        small.put(SECRETS, NAMESPACE, {"metadata": {"name": "claas-modal"}, "data": data})
        platform._read = Reader(platform._read._api)
        await platform.look(NAMESPACE, SERVER, "tone")


async def test_a_wrong_proxy_token_is_told_by_its_own_field(modal: PlayedModal) -> None:
    async with asking(modal, proxy={**PROXY_TOKEN, "secret": "ws-wrong-and-private"}) as (platform, _):
        await platform.point(NAMESPACE, PLACE, named("locked"))
        error = await trouble_of(lambda: platform.confirm(NAMESPACE, SERVER, named("locked"), None))
        assert error.trouble is ModalTrouble.CREDENTIALS_REFUSED
        assert "spec.serving.modalApp.proxyTokenSecretRef" in str(error)
        assert "private" not in str(error)


@pytest.mark.parametrize(
    ("effect", "trouble"),
    [
        (SPENT, ModalTrouble.BILLING_REQUIRED),
        (UNPAID, ModalTrouble.BILLING_REQUIRED),
        (Refuse(Status.PERMISSION_DENIED, "not yours"), ModalTrouble.CREDENTIALS_REFUSED),
        (Refuse(Status.RESOURCE_EXHAUSTED, "rate limit exceeded"), ModalTrouble.SERVICE_UNREACHABLE),
        (Refuse(Status.UNAVAILABLE, "out of order"), ModalTrouble.SERVICE_UNREACHABLE),
    ],
    ids=["spent", "unpaid", "forbidden", "throttled", "out of order"],
)
async def test_what_modal_refuses_is_told_by_what_somebody_has_to_do(
    modal: PlayedModal, effect: Refuse, trouble: ModalTrouble
) -> None:
    async with asking(modal) as (platform, _):
        rule = modal.peer.fail("VolumeGetOrCreate", effect)
        try:
            error = await trouble_of(lambda: platform.point(NAMESPACE, PLACE, named("failing")))
        finally:
            rule.lift()
        assert error.trouble is trouble, error


async def test_a_removal_goes_on_with_the_token_that_was_there_when_its_secret_is_gone(modal: PlayedModal) -> None:
    async with asking(modal) as (platform, small):
        await platform.point(NAMESPACE, PLACE, named("orphan"))
        small.remove(SECRETS, NAMESPACE, "claas-modal")
        platform._read = Reader(platform._read._api)
        await platform.remove(NAMESPACE, PLACE, "orphan", "uid-of-orphan")
        assert "orphan" not in modal.pointers()


async def test_a_removal_without_any_token_is_told(modal: PlayedModal) -> None:
    async with asking(modal) as (platform, small):
        small.remove(SECRETS, NAMESPACE, "claas-modal")
        error = await trouble_of(lambda: platform.remove(NAMESPACE, PLACE, "orphan", "uid"))
        assert "Secret claas-modal has no usable entry `token-id`" in str(error)
