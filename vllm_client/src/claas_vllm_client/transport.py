"""Requests to one server, with keys and time-outs; all failures become exceptions of this package."""

import ssl
from collections.abc import Mapping
from typing import TypeVar

import httpx
from pydantic import JsonValue, ValidationError

from claas_vllm_client.errors import (
    AnswerTimedOut,
    NotConnected,
    Refused,
    RequestFailed,
    RouteMissing,
    TlsFailed,
    UnexpectedAnswer,
    Unreachable,
    VllmError,
)
from claas_vllm_client.tls import MESH, Tls, answer_fault, handshake_fault, plain_fault, trust
from claas_vllm_client.tokens import Token
from claas_vllm_client.wire import Answer, ErrorAnswer

M = TypeVar("M", bound=Answer)
Json = Mapping[str, JsonValue]

CONTROL_TOKEN_HEADER = "X-Claas-Token"
VERSION_HEADER = "X-Claas-Version"
"""Header with the version that answered a request for a served name."""
_KEEP_ALIVE_SECONDS = 2.0
"""vLLM closes connections that are idle for five seconds; a request sent at that moment would be lost."""
_CONNECT_TIMEOUT_SECONDS = 5.0


class Transport:
    """Sends requests to the server at `base_url` and turns connection failures into `Unreachable`."""

    def __init__(
        self,
        base_url: str,
        *,
        control_token: Token,
        api_key: Token,
        headers: Mapping[str, str],
        timeout_seconds: float,
        keep_alive: bool,
        tls: Tls | None,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._control_token = control_token
        self._api_key = api_key
        self._more_headers = dict(headers)
        self.base_url = base_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._server_name = tls.server_name if tls else None
        self._answered = False
        self._asks_why = transport is None
        secure = self.base_url.startswith("https:") and transport is None
        try:
            verify = trust(tls) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        except ValueError as error:
            raise TlsFailed(self.base_url, str(error)) from None
        # Ignores proxies of the environment: they must not get the control token.
        self._http = httpx.AsyncClient(
            transport=transport,
            verify=verify,
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(
                max_keepalive_connections=None if keep_alive else 0, keepalive_expiry=_KEEP_ALIVE_SECONDS
            ),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def url(self, route: str) -> str:
        """The address of a route."""
        return f"{self.base_url}{route}"

    def _headers(self) -> dict[str, str]:
        token = self._control_token() if callable(self._control_token) else self._control_token
        key = self._api_key() if callable(self._api_key) else self._api_key
        headers = dict(self._more_headers)
        if token is not None:
            headers[CONTROL_TOKEN_HEADER] = token
        if self._server_name is not None:
            headers["Host"] = self._server_name
        return headers if key is None else {**headers, "Authorization": f"Bearer {key}"}

    async def send(
        self,
        method: str,
        route: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Json | None = None,
        timeout_seconds: float | None = None,
    ) -> httpx.Response:
        """Send one request; any status counts as an answer. Raises `Unreachable`, `AnswerTimedOut` or `TlsFailed`."""
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        timeout = httpx.Timeout(seconds, connect=min(seconds, _CONNECT_TIMEOUT_SECONDS))
        url = self.url(route)
        try:
            answer = await self._http.request(
                method,
                url,
                params=params,
                json=None if json is None else dict(json),
                headers=self._headers(),
                timeout=timeout,
                # The name to request and to verify if the certificate does not contain the address.
                extensions={"sni_hostname": self._server_name} if self._server_name is not None else None,
            )
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise AnswerTimedOut(url, f"no answer within {seconds:g} s; look at the server's log") from error
        except httpx.HTTPError as error:
            raise await self._failure(url, error) from error
        except httpx.InvalidURL as error:
            raise Unreachable(url, "this is no usable address; check host and port") from error
        self._answered = True
        return answer

    async def _failure(self, url: str, error: httpx.HTTPError) -> VllmError:
        """The exception for a request without an answer."""
        kind = type(error).__name__
        fault = handshake_fault(error)
        if fault is not None:
            return TlsFailed(url, fault)
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return NotConnected(url, f"no answer ({kind}); check that the pod runs and its port is open")
        if self._answered or not self._asks_why:
            return Unreachable(url, f"no answer ({kind}); the server may have ended, look at its log")
        fault = await plain_fault(url) if url.startswith("http:") else None
        if fault is not None:
            return TlsFailed(url, f"no answer ({kind}): {fault}")
        return Unreachable(
            url, f"no answer ({kind}), the connection was closed; the server may have ended, look at its log; {MESH}"
        )


def check(answer: httpx.Response) -> None:
    """Raise `Refused` or `RequestFailed` unless the answer is a success."""
    check_access(answer)
    if not answer.is_success:
        raise RequestFailed(shown(answer), answer.status_code, error_message(answer))


def check_control(answer: httpx.Response) -> None:
    """Like `check`, for a route that a setting of the server opens: `RouteMissing` names the setting."""
    check_access(answer)
    if is_missing_route(answer):
        raise RouteMissing(
            shown(answer),
            answer.status_code,
            "the server has no such route; start vLLM with VLLM_SERVER_DEV_MODE=1 for sleep and pause, with"
            " VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora for adapters, with the companion for aliases",
        )
    check(answer)


def check_access(answer: httpx.Response) -> None:
    """Raise `Refused` if a key is missing or wrong, `TlsFailed` if a proxy answers instead of vLLM."""
    fault = answer_fault(answer)
    if fault is not None:
        raise TlsFailed(shown(answer), f"HTTP {answer.status_code}: {fault}")
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise Refused(shown(answer), 401, "vLLM requires its API key; give the one of --api-key")
    if answer.status_code == httpx.codes.FORBIDDEN:
        raise Refused(
            shown(answer),
            403,
            "the companion's lock requires the control token; give the content of the file CLAAS_TOKEN_FILE names",
        )


def read(answer: httpx.Response, kind: type[M]) -> M:
    """The body as a value of that type. Raises `UnexpectedAnswer`, which names fields but never quotes their
    content."""
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        where = ", ".join(".".join(map(str, entry["loc"])) or "body" for entry in error.errors()[:3])
        raise UnexpectedAnswer(
            shown(answer), f"no readable {kind.__name__} (at {where}); is this a vLLM server?"
        ) from None


def shown(answer: httpx.Response) -> str:
    """The address of an answer."""
    return str(answer.request.url)


def is_missing_route(answer: httpx.Response) -> bool:
    """Whether a 404 is FastAPI's own (no such route) rather than vLLM's (no such adapter)."""
    return answer.status_code == httpx.codes.NOT_FOUND and error_message(answer) in ("Not Found", "")


def error_message(answer: httpx.Response) -> str:
    """The message of an error body in vLLM's shape, at most 500 characters."""
    try:
        error = ErrorAnswer.model_validate_json(answer.content).error
    except ValidationError:
        return answer.reason_phrase
    return (error if isinstance(error, str) else error.message)[:500]
