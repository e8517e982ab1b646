"""One vLLM server over HTTP: each method is one route, its answer checked and typed."""

from collections.abc import Mapping
from posixpath import normpath
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from claas_vllm_client.errors import (
    AdapterRejected,
    AliasRejected,
    AnswerTimedOut,
    ProbeFailed,
    Refused,
    RequestFailed,
    RouteMissing,
    UnexpectedAnswer,
    Unreachable,
)
from claas_vllm_client.wire import (
    CompanionStatus,
    Completion,
    ErrorAnswer,
    IsPaused,
    IsSleeping,
    LoadOutcome,
    Message,
    ModelList,
    PauseMode,
    ProbeAnswer,
    ServedModel,
    ServerLoad,
    parse_metrics,
)

M = TypeVar("M", bound=Message)
Json = Mapping[str, str | int | float | bool | None]

CONTROL_TOKEN_HEADER = "X-Claas-Token"


def same_path(left: str | None, right: str) -> bool:
    """Whether two adapter paths name the same directory as text (a trailing slash does not matter)."""
    return left is not None and normpath(left) == normpath(right)


class VllmClient:
    """A client of one vLLM API server, by the address of one pod. Use it as an async context manager.

    `control_token` opens the companion's lock, `api_key` is vLLM's own. All methods raise `Unreachable`
    when no answer comes, `Refused` when a key is missing or wrong, `RequestFailed` for any other error
    status and `UnexpectedAnswer` when a success can't be read.
    """

    def __init__(
        self,
        base_url: str,
        *,
        control_token: str | None = None,
        api_key: str | None = None,
        timeout_seconds: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {}
        if control_token is not None:
            headers[CONTROL_TOKEN_HEADER] = control_token
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self.base_url = base_url.rstrip("/")
        # A pod is reached directly: a proxy of the environment must not get the control token.
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, 5.0)),
            transport=transport,
            trust_env=False,
            follow_redirects=False,
        )

    async def __aenter__(self) -> "VllmClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def health(self) -> bool:
        """True when the engine lives (also while it sleeps), False when the server says it is dead."""
        answer = await self._send("GET", "/health")
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return False
        self._check(answer)
        return True

    async def sleep(self, *, mode: PauseMode = PauseMode.KEEP, level: int = 1, timeout_seconds: float = 60.0) -> None:
        """Pause the scheduler and offload the weights.

        Do not use `PauseMode.WAIT` with a timeout here: a wait that is given up stays queued in the engine and
        puts it to sleep later, after a resume. `serving.pause_serving` drains safely.
        """
        params = {"level": str(level), "mode": mode.value}
        await self._control("POST", "/sleep", params=params, timeout_seconds=timeout_seconds)

    async def wake_up(self, *, timeout_seconds: float = 60.0) -> None:
        """Bring weights, KV cache and scheduler back; clears a pause too."""
        await self._control("POST", "/wake_up", timeout_seconds=timeout_seconds)

    async def pause(self, *, mode: PauseMode, timeout_seconds: float = 30.0) -> None:
        """Pause the scheduler, memory untouched. With WAIT it returns when running requests have ended."""
        await self._control("POST", "/pause", params={"mode": mode.value}, timeout_seconds=timeout_seconds)

    async def resume(self) -> None:
        """End a pause. Never of a sleeping engine: `wake_up` does that."""
        await self._control("POST", "/resume")

    async def is_paused(self) -> bool:
        """Whether the scheduler is paused."""
        return self._read(await self._control("GET", "/is_paused"), IsPaused).is_paused

    async def is_sleeping(self) -> bool:
        """Whether the engine is asleep or paused (vLLM does not tell these apart here)."""
        return self._read(await self._control("GET", "/is_sleeping"), IsSleeping).is_sleeping

    async def models(self) -> tuple[ServedModel, ...]:
        """What the server lists: the base, loaded adapters, and the companion's served names."""
        answer = await self._send("GET", "/v1/models")
        self._check(answer)
        return self._read(answer, ModelList).data

    async def model(self, name: str) -> ServedModel | None:
        """The listed model of that name, or None."""
        return next((model for model in await self.models() if model.id == name), None)

    async def load_adapter(self, name: str, path: str, *, timeout_seconds: float = 60.0) -> LoadOutcome:
        """Load the adapter at `path` under `name`, and check that the server lists it with that root.

        Loading what is loaded from the same path is a success that changes nothing. Raises `AdapterRejected`
        when vLLM refuses it, when the name is taken by another path, or when it isn't listed afterwards.
        """
        if self._holds(await self.model(name), name, path):
            return LoadOutcome.ALREADY_LOADED
        outcome = LoadOutcome.LOADED
        body: Json = {"lora_name": name, "lora_path": path}
        answer = await self._send("POST", "/v1/load_lora_adapter", json=body, timeout_seconds=timeout_seconds)
        if answer.status_code == httpx.codes.BAD_REQUEST:
            # Someone else may have loaded it since we looked; what is listed decides.
            outcome = LoadOutcome.ALREADY_LOADED
        elif answer.is_error:
            self._check_access(answer)
            if _is_missing_route(answer):
                self._check_control(answer)
            raise AdapterRejected(
                self._url("/v1/load_lora_adapter"),
                name,
                path,
                f"HTTP {answer.status_code}: {_error_message(answer)}. Check that the pod mounts the volume at"
                " this path and that the adapter fits --max-lora-rank and the base model",
            )
        if not self._holds(await self.model(name), name, path):
            said = "answered with success" if answer.is_success else f"refused ({_error_message(answer)})"
            raise AdapterRejected(
                self._url("/v1/models"), name, path, f"the load was {said}, and it is not listed; look at the log"
            )
        return outcome

    async def unload_adapter(self, name: str) -> bool:
        """Unload an adapter. False when it was not loaded."""
        answer = await self._send("POST", "/v1/unload_lora_adapter", json={"lora_name": name})
        if answer.status_code == httpx.codes.NOT_FOUND and not _is_missing_route(answer):
            return False
        self._check_control(answer)
        return True

    async def companion_status(self) -> CompanionStatus | None:
        """The companion's state, or None when the server has no companion."""
        answer = await self._send("GET", "/claas/status")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        self._check(answer)
        return self._read(answer, CompanionStatus)

    async def set_alias(self, name: str, *, target: str, path: str, version: int) -> CompanionStatus:
        """Point the served name at a loaded adapter, atomically. Raises `AliasRejected` when it isn't loaded."""
        body: Json = {"target": target, "path": path, "version": version}
        answer = await self._send("PUT", _alias_route(name), json=body)
        if answer.status_code == httpx.codes.CONFLICT:
            raise AliasRejected(self._url(_alias_route(name)), answer.status_code, _error_message(answer))
        self._check_control(answer)
        return self._read(answer, CompanionStatus)

    async def delete_alias(self, name: str) -> bool:
        """Forget a served name; its target is unloaded when idle. False when there was none."""
        answer = await self._send("DELETE", _alias_route(name))
        if answer.status_code == httpx.codes.NOT_FOUND and not _is_missing_route(answer):
            return False
        self._check_control(answer)
        return True

    async def load(self) -> ServerLoad:
        """Running and waiting requests and the sleep state, from `/metrics`."""
        answer = await self._send("GET", "/metrics")
        self._check(answer)
        try:
            return parse_metrics(answer.text)
        except ValueError as error:
            raise UnexpectedAnswer(self._url("/metrics"), f"{error}; is this a vLLM server?") from error

    async def probe(
        self, model: str, prompt: str, *, max_tokens: int = 8, timeout_seconds: float = 60.0
    ) -> ProbeAnswer:
        """Complete a fixed prompt greedily. Raises `ProbeFailed` when there is no usable answer."""
        body: Json = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "logprobs": 1,
            "return_token_ids": True,
        }
        url = self._url("/v1/completions")
        answer = await self._send("POST", "/v1/completions", json=body, timeout_seconds=timeout_seconds)
        self._check_access(answer)
        if answer.is_error:
            # The body may quote the prompt, so only its status goes into the message.
            hint = "; the model is not served" if answer.status_code == httpx.codes.NOT_FOUND else ""
            raise ProbeFailed(url, f"{model} answered HTTP {answer.status_code}{hint}; look at the server's log")
        choices = self._read(answer, Completion)
        if not choices.choices:
            raise ProbeFailed(url, f"{model} answered without a choice")
        choice = choices.choices[0]
        logprobs = choice.logprobs.token_logprobs if choice.logprobs else ()
        if not choice.token_ids or len(logprobs) != len(choice.token_ids) or None in logprobs:
            raise ProbeFailed(
                url,
                f"{model} answered without token ids, or without one log-probability for each; vLLM 0.32 or later"
                " answers with both",
            )
        values = tuple(value for value in logprobs if value is not None)
        return ProbeAnswer(answered_by=choices.model, text=choice.text, token_ids=choice.token_ids, logprobs=values)

    def _url(self, route: str) -> str:
        return f"{self.base_url}{route}"

    async def _send(
        self,
        method: str,
        route: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Json | None = None,
        timeout_seconds: float | None = None,
    ) -> httpx.Response:
        timeout = self._http.timeout
        if timeout_seconds is not None:
            timeout = httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, 5.0))
        url = self._url(route)
        try:
            return await self._http.request(
                method, url, params=params, json=None if json is None else dict(json), timeout=timeout
            )
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise AnswerTimedOut(url, f"no answer within {timeout.read} s; look at the server's log") from error
        except httpx.HTTPError as error:
            kind = type(error).__name__
            raise Unreachable(url, f"no answer ({kind}); check that the pod runs and its port is open") from error
        except httpx.InvalidURL as error:
            raise Unreachable(url, "this is no usable address; check host and port") from error

    async def _control(
        self,
        method: str,
        route: str,
        *,
        params: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> httpx.Response:
        answer = await self._send(method, route, params=params, timeout_seconds=timeout_seconds)
        self._check_control(answer)
        return answer

    def _check(self, answer: httpx.Response) -> None:
        self._check_access(answer)
        if not answer.is_success:
            raise RequestFailed(_shown(answer), answer.status_code, _error_message(answer))

    def _check_control(self, answer: httpx.Response) -> None:
        self._check_access(answer)
        if _is_missing_route(answer):
            raise RouteMissing(
                _shown(answer),
                answer.status_code,
                "the server has no such route; start vLLM with VLLM_SERVER_DEV_MODE=1 for sleep and pause, with"
                " VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora for adapters, with the companion for aliases",
            )
        self._check(answer)

    def _check_access(self, answer: httpx.Response) -> None:
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise Refused(_shown(answer), 401, "vLLM wants its API key; give the one of --api-key")
        if answer.status_code == httpx.codes.FORBIDDEN:
            raise Refused(
                _shown(answer),
                403,
                "the companion's lock wants the control token; give the content of the file CLAAS_TOKEN_FILE names",
            )

    def _read(self, answer: httpx.Response, kind: type[M]) -> M:
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            # The errors' inputs are left out: they may quote an answer's text.
            where = ", ".join(".".join(map(str, entry["loc"])) or "body" for entry in error.errors()[:3])
            raise UnexpectedAnswer(
                _shown(answer), f"no readable {kind.__name__} (at {where}); is this a vLLM server?"
            ) from None

    def _holds(self, model: ServedModel | None, name: str, path: str) -> bool:
        if model is None:
            return False
        if same_path(model.root, path):
            return True
        raise AdapterRejected(
            self._url("/v1/models"),
            name,
            path,
            f"the name is taken by an adapter loaded from {model.root}; unload that one, or use another name",
        )


def _alias_route(name: str) -> str:
    return f"/claas/aliases/{quote(name, safe='/@')}"


def _shown(answer: httpx.Response) -> str:
    return str(answer.request.url)


def _is_missing_route(answer: httpx.Response) -> bool:
    """Whether a 404 is FastAPI's own (no such route) rather than vLLM's (no such adapter)."""
    return answer.status_code == httpx.codes.NOT_FOUND and _error_message(answer) in ("Not Found", "")


def _error_message(answer: httpx.Response) -> str:
    """The message of an error body in vLLM's shape, at most 500 characters."""
    try:
        error = ErrorAnswer.model_validate_json(answer.content).error
    except ValidationError:
        return answer.reason_phrase
    return (error if isinstance(error, str) else error.message)[:500]
