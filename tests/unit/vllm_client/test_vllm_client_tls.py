"""TLS between client and server, with real servers and certificates made here: what is said where they disagree."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from claas_contract.input import ServerTrust, ServingTarget, VllmPod
from claas_operator.clients import servers
from claas_operator.clients.servers import Credentials
from claas_trainer.errors import InputError
from claas_trainer.paths import Paths
from claas_trainer.serving.liveness import gone
from claas_trainer.serving.pods import connect
from claas_vllm_client import Refused, Tls, TlsFailed, Unreachable, VllmClient, VllmError, certificates_fault
from tests.cluster.services.certificates import KeyPair, make_authority, make_certificate

NAME = "vllm.team.svc"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Pki:
    """Two authorities; the first signed a certificate for `NAME` and one for the loopback address."""

    ca: str
    ca_file: Path
    other_ca: str
    named: KeyPair
    addressed: KeyPair


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    authority, other = make_authority(folder / "one"), make_authority(folder / "other")
    return Pki(
        authority.path.read_text(),
        authority.path,
        other.path.read_text(),
        make_certificate(authority, folder, "named", common_name="vllm", hosts=[NAME]),
        make_certificate(authority, folder, "addressed", common_name="vllm", hosts=["127.0.0.1"]),
    )


HOSTS: list[str] = []


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    HOSTS.append(head.decode().partition("Host: ")[2].partition("\r\n")[0])
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    await writer.drain()
    writer.close()


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a mesh's proxy does to who is not in it."""
    await reader.read(1)
    writer.transport.abort()


def refusing(head: bytes, body: bytes = b"") -> Handler:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (head, len(body), body))
        await writer.drain()
        writer.close()

    return refuse


def of(pair: KeyPair, *, client_ca: Path | None = None, newest: bool = True) -> ssl.SSLContext:
    """A server's side of TLS; with `client_ca` it takes clients with a certificate alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    if not newest:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@asynccontextmanager
async def server(handler: Handler = answers, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server on the loopback address; its host and port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    listening.close()


async def test_a_server_is_verified_by_its_ca_and_a_name_of_its_certificate(pki: Pki) -> None:
    HOSTS.clear()
    async with (
        server(context=of(pki.named)) as at,
        VllmClient(f"https://{at}", tls=Tls(pki.ca, NAME)) as client,
    ):
        assert await client.health()
    assert HOSTS == [NAME]


async def test_without_a_name_the_certificate_must_be_for_the_address(pki: Pki) -> None:
    async with server(context=of(pki.addressed)) as at, VllmClient(f"https://{at}", tls=Tls(pki.ca)) as client:
        assert await client.health()


@pytest.mark.parametrize(
    ("scheme", "trusted", "name", "says"),
    [
        ("https", "its own", None, ("another name", "spec.serving.tls.serverName")),
        ("https", "its own", "other.team.svc", ("another name", "spec.serving.tls.serverName")),
        ("https", "another", NAME, ("can't be verified", "name its CA in spec.serving.tls")),
        ("https", "public", NAME, ("can't be verified", "name its CA in spec.serving.tls")),
        ("http", "its own", None, ("speaks TLS", "spec.serving.scheme to https")),
    ],
)
async def test_a_server_with_tls_that_is_asked_otherwise_says_what_to_set(
    pki: Pki, scheme: str, trusted: str, name: str | None, says: tuple[str, ...]
) -> None:
    ca = {"its own": pki.ca, "another": pki.other_ca, "public": None}[trusted]
    async with server(context=of(pki.named)) as at, VllmClient(f"{scheme}://{at}", tls=Tls(ca, name)) as client:
        with pytest.raises(TlsFailed) as failed:
            await client.health()
    for text in says:
        assert text in str(failed.value)


async def answers_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As HTTP servers do to a handshake."""
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("handler", [answers_nonsense, closes])
async def test_a_server_without_tls_that_is_asked_over_it_says_what_to_set(pki: Pki, handler: Handler) -> None:
    async with server(handler) as at, VllmClient(f"https://{at}", tls=Tls(pki.ca, NAME)) as client:
        with pytest.raises(TlsFailed, match=r"spec\.serving\.scheme to http\b"):
            await client.health()


@pytest.mark.parametrize("newest", [True, False], ids=["TLS 1.3", "TLS 1.2"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_mutual_tls_that_only_a_mesh_speaks_is_named(pki: Pki, scheme: str, newest: bool) -> None:
    context = of(pki.named, client_ca=pki.ca_file, newest=newest)
    async with server(context=context) as at, VllmClient(f"{scheme}://{at}", tls=Tls(pki.ca, NAME)) as client:
        with pytest.raises(VllmError, match="service mesh"):
            await client.health()


async def test_a_connection_that_is_closed_at_once_names_the_mesh_too_and_is_no_answer() -> None:
    async with server(closes) as at, VllmClient(f"http://{at}") as client:
        with pytest.raises(Unreachable, match="service mesh"):
            await client.health()


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (refusing(b"403 Forbidden\r\nl5d-proxy-error: unauthorized connection"), "service mesh"),
        (refusing(b"403 Forbidden", b"RBAC: access denied"), "service mesh"),
        (
            refusing(b"400 Bad Request", b"Client sent an HTTP request to an HTTPS server."),
            "to https",
        ),
    ],
)
async def test_a_proxys_refusal_is_not_taken_for_vllms(handler: Handler, says: str) -> None:
    async with server(handler) as at, VllmClient(f"http://{at}") as client:
        with pytest.raises(TlsFailed, match=says):
            await client.companion_status()


async def test_the_locks_own_refusal_stays_one() -> None:
    async with server(refusing(b"403 Forbidden")) as at, VllmClient(f"http://{at}") as client:
        with pytest.raises(Refused):
            await client.companion_status()


async def test_certificates_that_cannot_be_read_are_refused_before_anything_is_asked(pki: Pki) -> None:
    for ca in ("", "not a certificate", pki.ca.replace("BEGIN", "BEGUN")):
        assert certificates_fault(ca) is not None
        with pytest.raises(TlsFailed, match=r"spec\.serving\.tls"):
            VllmClient("https://127.0.0.1:1", tls=Tls(ca))
    assert certificates_fault(pki.ca + pki.other_ca) is None


async def test_a_server_that_cannot_be_verified_has_not_ended(pki: Pki) -> None:
    async with server(context=of(pki.named)) as at:
        assert await gone([f"https://{at}"], Tls(pki.ca, NAME)) == []
        assert await gone([f"https://{at}"], Tls(pki.other_ca, NAME)) == []
    assert await gone([f"https://{at}"], Tls(pki.ca, NAME)) == [f"https://{at}"]


async def test_the_operator_tells_it_of_the_pod(pki: Pki) -> None:
    async with server(context=of(pki.named)) as at:
        state = await servers.ask_state(f"http://{at}", "tone", Credentials())
    assert not state.reachable
    assert "spec.serving.scheme to https" in state.error
    broken = await servers.ask_state(f"https://{at}", "tone", Credentials(tls=Tls("")))
    assert (broken.reachable, "no certificate" in broken.error) == (False, True)


async def test_a_trainer_verifies_by_the_ca_that_is_mounted_and_says_which_field_names_one_that_is_not(
    pki: Pki, tmp_path: Path
) -> None:
    async with server(context=of(pki.named)) as at:
        target = ServingTarget(
            served_name="tone",
            pods=[VllmPod(name="vllm-0", uid="u", url=f"https://{at}", storage_path="/a")],
            tls=ServerTrust(has_ca=True, server_name=NAME),
        )
        async with connect(target, Paths(serving_ca=pki.ca_file)) as (pod,):
            assert await pod.client.health()
            assert await gone([pod.pod.url], pod.client.tls) == []
        with pytest.raises(InputError, match=r"spec\.serving\.tls"):
            async with connect(target, Paths(serving_ca=tmp_path / "absent")):
                pass
