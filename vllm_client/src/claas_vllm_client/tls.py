"""TLS to a server: trust settings, and the likely cause of a failed connection."""

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

_ASK_SECONDS = 1.0
_ALERT_SECONDS = 0.3
MESH = (
    "a service mesh that requires mutual TLS does so: exclude vLLM's port from it (Istio:"
    " traffic.sidecar.istio.io/excludeInboundPorts, or a PeerAuthentication that is PERMISSIVE for the port;"
    " Linkerd: config.linkerd.io/skip-inbound-ports), or add the operator and the trainers to it"
)

_WANTS_OURS = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "BAD_CERTIFICATE")
"""Alerts to a client that has no certificate."""
_OURS = "it seems to want a certificate of its clients"
_WAITING = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
_SPEAKS_NONE = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH")


@dataclass(frozen=True)
class Tls:
    """How a server's certificate is verified. `ca`: CA certificates in PEM, None for public CAs. `server_name`: the
    name to verify; None: the requested host."""

    ca: str | None = None
    server_name: str | None = None


def certificates_fault(pem: str) -> str | None:
    """Why a text has no usable CA certificates; None if it has."""
    try:
        if not pem.strip():
            raise ValueError("without certificates Python trusts public CAs")
        ssl.create_default_context(cadata=pem)
    except (ssl.SSLError, ValueError):
        return "holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"
    return None


def trust(tls: Tls | None) -> ssl.SSLContext:
    """TLS context of a client. Raises ValueError if the certificates can't be read."""
    if tls is None or tls.ca is None:
        return httpx.create_ssl_context(trust_env=False)
    fault = certificates_fault(tls.ca)
    if fault is not None:
        raise ValueError(f"what spec.serving.tls names {fault}")
    return ssl.create_default_context(cadata=tls.ca)


def handshake_fault(error: BaseException) -> str | None:
    """The cause of a failed handshake; None if TLS was not involved."""
    chain = list(_chain(error))
    found = next((each for each in chain if isinstance(each, ssl.SSLError) and not isinstance(each, _WAITING)), None)
    closed = any(type(each).__name__ in ("EndOfStream", "BrokenResourceError") for each in chain)
    if isinstance(found, ssl.SSLEOFError) or (found is None and closed and isinstance(error, httpx.ConnectError)):
        return (
            f"it closed the connection in the handshake: if it speaks no TLS, set spec.serving.scheme to http; {MESH}"
        )
    if found is None:
        return None
    if isinstance(found, ssl.SSLCertVerificationError):
        return _certificate_fault(found)
    reason = (found.reason or str(found)).upper().replace(" ", "_")
    if any(told in reason for told in _WANTS_OURS):
        return f"{_OURS} ({found.reason}); {MESH}"
    if any(told in reason for told in _SPEAKS_NONE):
        return "it speaks no TLS on this port: set spec.serving.scheme to http"
    return f"TLS failed ({found.reason or type(found).__name__}); check spec.serving.scheme and spec.serving.tls"


def answer_fault(answer: httpx.Response) -> str | None:
    """The cause in an answer of a proxy in front of vLLM; None for vLLM's own answers."""
    if answer.status_code == httpx.codes.FORBIDDEN and (
        "l5d-proxy-error" in answer.headers or b"RBAC: access denied" in answer.content
    ):
        return f"the proxy of a service mesh refuses clients outside the mesh; {MESH}"
    if answer.status_code == httpx.codes.BAD_REQUEST and b" HTTPS " in answer.content[:500]:
        return "it speaks TLS on this port: set spec.serving.scheme to https"
    return None


def _certificate_fault(error: ssl.SSLCertVerificationError) -> str:
    said = error.verify_message
    if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
        return f"its certificate is for another name ({said}): set spec.serving.tls.serverName to one that it is for"
    return f"its certificate can't be verified ({said}): name its CA in spec.serving.tls"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


async def plain_fault(url: str) -> str | None:
    """Why a server closed a connection without TLS: it requires TLS, or TLS with a client certificate. None if it
    speaks no TLS."""
    address = httpx.URL(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent, so the certificate need not be verified.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            reader, writer = await asyncio.open_connection(address.host, address.port or 80, ssl=context)
            try:
                # In TLS 1.3 a server asks for a client certificate after the handshake, and closes the connection
                # without one.
                async with asyncio.timeout(_ALERT_SECONDS):
                    await reader.read(1)
                return f"{_OURS}; {MESH}"
            except TimeoutError:
                return "it speaks TLS on this port: set spec.serving.scheme to https"
            finally:
                writer.close()
    except ssl.SSLError as error:
        fault = handshake_fault(error)
        return fault if fault is not None and _OURS in fault else None
    except (OSError, TimeoutError):
        return None
