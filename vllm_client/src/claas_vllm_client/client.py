"""Client of one vLLM server: each method calls one route and returns a checked, typed answer."""

from collections.abc import Mapping, Sequence
from posixpath import normpath
from types import TracebackType
from urllib.parse import quote

import httpx
from pydantic import JsonValue

from claas_vllm_client.errors import (
    AdapterRejected,
    AliasRejected,
    ProbedNothing,
    ProbeFailed,
    RequestFailed,
    UnexpectedAnswer,
)
from claas_vllm_client.tls import Tls
from claas_vllm_client.tokens import Token
from claas_vllm_client.transport import (
    VERSION_HEADER,
    Json,
    Transport,
    check,
    check_access,
    check_control,
    error_message,
    is_missing_route,
    read,
)
from claas_vllm_client.wire import (
    CompanionStatus,
    Completion,
    IsPaused,
    IsSleeping,
    LoadOutcome,
    ModelList,
    PauseMode,
    ProbeAnswer,
    RpcResults,
    ServedModel,
    ServerLoad,
    TokenIds,
    parse_metrics,
)

_LIKELIEST = 5
"""Number of log-probabilities at each position of a probe's answer; vLLM's --max-logprobs allows 20 by default."""
_MAY_PASS = frozenset({429, 502, 503, 504})
"""Statuses that tell nothing of an adapter: the inference proxy answers so while its service does not."""


def same_path(left: str | None, right: str) -> bool:
    """Whether two adapter paths are the same text, apart from a trailing slash."""
    return left is not None and normpath(left) == normpath(right)


class VllmClient:
    """A client of one vLLM API server, by the address of one pod. Use it as an async context manager.

    `control_token` opens the companion's lock, `api_key` is vLLM's own; a function is called for it at each request.
    `headers` are sent with each request, for a proxy in front of the server.
    Without `keep_alive` each request opens its own connection, which distinguishes a server that has ended from a
    slow one. All methods raise `Unreachable` without an answer, `Refused` if a key is missing or wrong,
    `RequestFailed` for any other error status, and `UnexpectedAnswer` for an unreadable success.
    """

    def __init__(
        self,
        base_url: str,
        *,
        control_token: Token = None,
        api_key: Token = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 10.0,
        keep_alive: bool = True,
        tls: Tls | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._transport = Transport(
            base_url,
            control_token=control_token,
            api_key=api_key,
            headers=headers or {},
            timeout_seconds=timeout_seconds,
            keep_alive=keep_alive,
            tls=tls,
            transport=transport,
        )
        self.base_url = self._transport.base_url
        self.tls = tls
        self.renews_token = callable(control_token)
        """Whether the token may change, so that a refused request is worth a retry."""

    def below(self, root_path: str) -> None:
        """Prefix later requests with a root path (vLLM's --root-path)."""
        self._transport.base_url += root_path
        self.base_url = self._transport.base_url

    async def __aenter__(self) -> "VllmClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def health(self) -> bool:
        """True if the engine is alive (also while it sleeps), False if the server reports it dead."""
        answer = await self._transport.send("GET", "/health")
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return False
        check(answer)
        return True

    async def sleep(self, *, mode: PauseMode = PauseMode.KEEP, level: int = 1, timeout_seconds: float = 60.0) -> None:
        """Pause the scheduler and offload the weights.

        Do not use `PauseMode.WAIT` with a time-out here: an abandoned wait stays queued in the engine and puts it to
        sleep later, after a resume. `serving.pause_serving` drains safely.
        """
        params = {"level": str(level), "mode": mode.value}
        await self._control("POST", "/sleep", params=params, timeout_seconds=timeout_seconds)

    async def wake_up(self, *, timeout_seconds: float = 60.0) -> None:
        """Restore weights, KV cache and scheduler; also ends a pause."""
        await self._control("POST", "/wake_up", timeout_seconds=timeout_seconds)

    async def pause(self, *, mode: PauseMode, timeout_seconds: float = 30.0) -> None:
        """Pause the scheduler without freeing memory. With WAIT, returns when running requests have ended."""
        await self._control("POST", "/pause", params={"mode": mode.value}, timeout_seconds=timeout_seconds)

    async def resume(self) -> None:
        """End a pause. For a sleeping engine use `wake_up`."""
        await self._control("POST", "/resume")

    async def is_paused(self) -> bool:
        """Whether the scheduler is paused."""
        return read(await self._control("GET", "/is_paused"), IsPaused).is_paused

    async def is_sleeping(self) -> bool:
        """Whether the engine is asleep or paused (this route does not distinguish them)."""
        return read(await self._control("GET", "/is_sleeping"), IsSleeping).is_sleeping

    async def models(self) -> tuple[ServedModel, ...]:
        """The models of the server: the base model, loaded adapters, and the companion's served names."""
        # The companion's /v1/models omits the versions behind its names.
        answer = await self._transport.send("GET", "/claas/models")
        if answer.status_code == httpx.codes.NOT_FOUND:
            answer = await self._transport.send("GET", "/v1/models")
        check(answer)
        return read(answer, ModelList).data

    async def model(self, name: str) -> ServedModel | None:
        """The listed model of that name, or None."""
        return next((model for model in await self.models() if model.id == name), None)

    async def load_adapter(self, name: str, path: str, *, timeout_seconds: float = 60.0) -> LoadOutcome:
        """Load the adapter at `path` under `name`, and check that the server lists it with that root.

        If it is loaded from that path already, nothing changes. Raises `AdapterRejected` if vLLM refuses it, if an
        adapter from another path has the name, or if it isn't listed afterwards; `RequestFailed` if it may be loaded
        later.
        """
        if self._holds(await self.model(name), name, path):
            return LoadOutcome.ALREADY_LOADED
        outcome = LoadOutcome.LOADED
        body: Json = {"lora_name": name, "lora_path": path}
        answer = await self._transport.send(
            "POST", "/v1/load_lora_adapter", json=body, timeout_seconds=timeout_seconds
        )
        if answer.status_code == httpx.codes.BAD_REQUEST:
            # Another process may have loaded it meanwhile, so check the list.
            outcome = LoadOutcome.ALREADY_LOADED
        elif answer.is_error:
            check_access(answer)
            if is_missing_route(answer) or answer.status_code in _MAY_PASS:
                check_control(answer)
            raise AdapterRejected(
                self._transport.url("/v1/load_lora_adapter"),
                name,
                path,
                f"HTTP {answer.status_code}: {error_message(answer)}. Check that the pod mounts the volume at"
                " this path and that the adapter fits --max-lora-rank and the base model",
            )
        if not self._holds(await self.model(name), name, path):
            said = "answered with success" if answer.is_success else f"refused ({error_message(answer)})"
            raise AdapterRejected(
                self._transport.url("/v1/models"),
                name,
                path,
                f"the load was {said}, and it is not listed; look at the log",
            )
        return outcome

    async def unload_adapter(self, name: str) -> bool:
        """Unload an adapter. False if it was not loaded."""
        answer = await self._transport.send("POST", "/v1/unload_lora_adapter", json={"lora_name": name})
        if answer.status_code == httpx.codes.NOT_FOUND and not is_missing_route(answer):
            return False
        check_control(answer)
        return True

    async def tokenize_chat(
        self,
        messages: Sequence[Mapping[str, JsonValue]],
        *,
        answer_next: bool = True,
        template_arguments: Mapping[str, JsonValue] | None = None,
    ) -> tuple[int, ...]:
        """Token ids of a conversation as the server renders it; with `answer_next`, up to the beginning of the
        answer. `template_arguments` override --default-chat-template-kwargs. Raises `RequestFailed` with status 400
        if the chat template refuses the conversation; the server's message may quote it.
        """
        body: dict[str, JsonValue] = {
            "messages": [dict(each) for each in messages],
            "add_generation_prompt": answer_next,
            "chat_template_kwargs": dict(template_arguments or {}),
        }
        answer = await self._transport.send("POST", "/tokenize", json=body)
        check(answer)
        return read(answer, TokenIds).tokens

    async def companion_status(self) -> CompanionStatus | None:
        """The companion's status; None if the server has no companion."""
        answer = await self._transport.send("GET", "/claas/status")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        check(answer)
        return read(answer, CompanionStatus)

    async def set_alias(
        self, name: str, *, target: str, path: str, version: int, probe: Mapping[str, JsonValue] | None = None
    ) -> CompanionStatus:
        """Point the served name at a loaded adapter, atomically. Raises `AliasRejected` if it isn't loaded. The
        companion stores `probe`; with it the version counts as verified.
        """
        body: Json = {"target": target, "path": path, "version": version}
        body = body if probe is None else {**body, "probe": dict(probe)}
        answer = await self._transport.send("PUT", _alias_route(name), json=body)
        if answer.status_code == httpx.codes.CONFLICT:
            raise AliasRejected(self._transport.url(_alias_route(name)), answer.status_code, error_message(answer))
        check_control(answer)
        return read(answer, CompanionStatus)

    async def delete_alias(self, name: str) -> bool:
        """Delete a served name; its target is unloaded when idle. False if there was none."""
        answer = await self._transport.send("DELETE", _alias_route(name))
        if answer.status_code == httpx.codes.NOT_FOUND and not is_missing_route(answer):
            return False
        check_control(answer)
        return True

    async def export_weights(self, *, timeout_seconds: float = 60.0) -> Mapping[str, JsonValue]:
        """The answer of the worker extension `claas_vllm.WeightExport`: handles to the weights, or why they can't be
        shared. Raises `RequestFailed` if vLLM runs without it, `UnexpectedAnswer` for several workers."""
        body: Json = {"method": "claas_export_weights"}
        route = "/collective_rpc"
        answer = await self._control("POST", route, json=body, timeout_seconds=timeout_seconds)
        results = read(answer, RpcResults).results
        if len(results) != 1:
            raise UnexpectedAnswer(self._transport.url(route), f"{len(results)} workers answered; one is needed")
        return results[0]

    async def load(self) -> ServerLoad:
        """Running and waiting requests, generated tokens and the sleep state, from `/metrics`."""
        answer = await self._transport.send("GET", "/metrics")
        check(answer)
        try:
            return parse_metrics(answer.text)
        except ValueError as error:
            raise UnexpectedAnswer(self._transport.url("/metrics"), f"{error}; is this a vLLM server?") from error

    async def probe(
        self, model: str, prompt: str, *, max_tokens: int = 8, timeout_seconds: float = 60.0
    ) -> ProbeAnswer:
        """Complete a fixed prompt greedily. Raises `ProbeFailed` without a usable answer, `RequestFailed` if there
        may be one later."""
        body: Json = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "logprobs": _LIKELIEST,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        url = self._transport.url("/v1/completions")
        answer = await self._transport.send("POST", "/v1/completions", json=body, timeout_seconds=timeout_seconds)
        if answer.status_code == httpx.codes.BAD_REQUEST:
            # A server with a smaller --max-logprobs returns fewer.
            body = {**body, "logprobs": 1}
            answer = await self._transport.send("POST", "/v1/completions", json=body, timeout_seconds=timeout_seconds)
        check_access(answer)
        # The body of an error may quote the prompt, so the message has only the status.
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise ProbedNothing(url, f"{model} is not loaded (HTTP 404); look at the server's log")
        if answer.status_code in _MAY_PASS:
            raise RequestFailed(url, answer.status_code, f"{model} does not answer now; it is asked again")
        if answer.is_error:
            raise ProbeFailed(url, f"{model} answered HTTP {answer.status_code}; look at the server's log")
        choices = read(answer, Completion)
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
        answered_by = answer.headers.get(VERSION_HEADER, choices.model)
        likeliest = (choice.logprobs.top_logprobs if choice.logprobs else None) or ()
        return ProbeAnswer(
            answered_by=answered_by,
            text=choice.text,
            token_ids=choice.token_ids,
            logprobs=values,
            likeliest=tuple(found or {} for found in likeliest),
        )

    async def _control(
        self,
        method: str,
        route: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Json | None = None,
        timeout_seconds: float | None = None,
    ) -> httpx.Response:
        answer = await self._transport.send(method, route, params=params, json=json, timeout_seconds=timeout_seconds)
        check_control(answer)
        return answer

    def _holds(self, model: ServedModel | None, name: str, path: str) -> bool:
        if model is None:
            return False
        if same_path(model.root, path):
            return True
        raise AdapterRejected(
            self._transport.url("/v1/models"),
            name,
            path,
            f"the name is taken by an adapter loaded from {model.root}; unload that one, or use another name",
        )


def _alias_route(name: str) -> str:
    return f"/claas/aliases/{quote(name, safe='/@')}"
