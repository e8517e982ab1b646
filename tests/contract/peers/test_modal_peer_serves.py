"""Servers of an app: their proxy, their containers, and how these end."""

import contextlib
from collections.abc import Iterator

import httpx
import modal
import pytest

from tests.contract.peers.modal_site import connect, deploy, deploy_sample, until
from tests.peers.modal.server import PROXY_KEY, PROXY_SECRET, ModalPeer

pytestmark = pytest.mark.contract

TOKEN = {"Modal-Key": PROXY_KEY, "Modal-Secret": PROXY_SECRET}


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalPeer]:
    with ModalPeer(tmp_path_factory.mktemp("modal"), idle_s=4.0) as peer:
        deploy_sample(peer)
        yield peer


@pytest.fixture(scope="module")
def site(peer: ModalPeer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=peer.server_url("sample", "Site"), headers=TOKEN) as site:
        yield site


def names(site: httpx.Client, count: int = 4) -> list[str]:
    """The containers that answer so many requests, one after the other."""
    return [site.get("/").raise_for_status().text for _ in range(count)]


def is_warm(site: httpx.Client) -> bool:
    return site.get("/").status_code == 200


def test_its_address_is_looked_up_by_name(peer: ModalPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(peer, monkeypatch)
    assert modal.Server.from_name("sample", "Site", client=client).get_url() == peer.server_url("sample", "Site")


@pytest.mark.parametrize("token", [{}, {"Modal-Key": PROXY_KEY}, {**TOKEN, "Modal-Secret": "other"}])
def test_it_wants_the_token_for_proxies(peer: ModalPeer, token: dict[str, str]) -> None:
    assert httpx.get(peer.server_url("sample", "Site"), headers=token).status_code == 401


def test_a_cold_server_answers_503_and_starts(peer: ModalPeer, site: httpx.Client) -> None:
    until(lambda: not peer.containers("sample"))
    assert site.get("/").status_code == 503
    until(lambda: is_warm(site))
    assert names(site) == [container.task_id for container in peer.containers("sample")] * 4


def test_requests_go_through_unchanged_but_for_the_token(site: httpx.Client) -> None:
    until(lambda: is_warm(site))
    assert site.post("/x?y=1", content=b"body").text == "body []"
    with site.stream("POST", "/stream", content=b"abcdef") as streamed:
        pieces = list(streamed.iter_raw())
    assert b"".join(pieces) == b"abcdef"
    assert len(pieces) > 1


def test_containers_take_turns_and_one_that_is_killed_is_replaced(peer: ModalPeer, site: httpx.Client) -> None:
    peer.start_containers("sample", "Site", 2)
    until(lambda: is_warm(site) and len(set(names(site))) == 2)
    killed = names(site, 1)[0]
    peer.kill_container(killed)
    until(lambda: killed not in {container.task_id for container in peer.containers("sample")})
    assert killed not in names(site)
    until(lambda: len(set(names(site))) == 2)


def test_a_session_stays_with_its_container(peer: ModalPeer, site: httpx.Client) -> None:
    peer.start_containers("sample", "Site", 2)
    until(lambda: is_warm(site) and len(set(names(site))) == 2)
    answers = {site.get("/", headers={"Modal-Session-ID": "one"}).text for _ in range(6)}
    assert len(answers) == 1


def test_a_request_under_way_breaks_when_its_container_is_killed(peer: ModalPeer, site: httpx.Client) -> None:
    until(lambda: is_warm(site))
    with (
        contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError),
        site.stream("POST", "/stream", content=b"a" * 200) as streamed,
    ):
        received = b""
        for piece in streamed.iter_raw():
            received += piece
            for container in peer.containers("sample"):
                peer.kill_container(container.id)
        pytest.fail(f"the stream ended well after {len(received)} bytes")


def test_idle_containers_are_asked_to_end(peer: ModalPeer, site: httpx.Client) -> None:
    until(lambda: is_warm(site))
    last = peer.containers("sample")[-1]
    until(lambda: not peer.containers("sample"))
    assert last.exit_code == 0
    assert "Drained" in last.log


def test_a_new_deployment_keeps_the_address_and_replaces_containers(peer: ModalPeer, site: httpx.Client) -> None:
    until(lambda: is_warm(site))
    before = names(site, 1)[0]
    assert deploy(peer).returncode == 0
    assert peer.app("sample").deployments == 2
    assert peer.server_url("sample", "Site") == str(site.base_url).rstrip("/")
    until(lambda: before not in {container.task_id for container in peer.containers("sample")})
    until(lambda: is_warm(site))
    assert names(site, 1)[0] != before
