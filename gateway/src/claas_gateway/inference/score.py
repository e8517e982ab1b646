"""Scores: log-probabilities of a given completion, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from pydantic import JsonValue

from claas_gateway.directory.models import Adapter, Server, Target
from claas_gateway.errors import Failed
from claas_gateway.inference.outlet import JSON, Outlet
from claas_gateway.inference.request import Fields, Malformed, read_fields, read_model
from claas_gateway.services import Services
from claas_gateway.upstream.credentials import ServerCredentials
from claas_gateway.upstream.pods import PodTries

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ScoreAsked:
    """A request for a score."""

    model: str | None
    messages: msgspec.Raw
    completion: str


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Token(msgspec.Struct):
    logprob: float
    decoded_token: str | None = None


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[str, _Token] | None]


class _Scored(msgspec.Struct):
    choices: list[_Choice]


def read_score(body: bytes) -> ScoreAsked:
    """Read a request; raises Malformed."""
    fields = read_fields(body)
    for name in ("messages", "completion"):
        if name not in fields:
            raise Malformed("missing", ("body", name), "Field required")
    messages = _decoded(fields, "messages", list[dict[str, msgspec.Raw]], "Input should be a list of messages")
    completion = _decoded(fields, "completion", str, "Input should be a valid string")
    if not messages:
        raise Malformed("too_short", ("body", "messages"), "List should have at least 1 item")
    if not completion:
        raise Malformed("string_too_short", ("body", "completion"), "String should have at least 1 character")
    return ScoreAsked(read_model(fields), fields["messages"], completion)


class Scoring:
    """One request for a score."""

    def __init__(
        self, services: Services, asked: ScoreAsked, target: Target, outlet: Outlet, hold_seconds: float
    ) -> None:
        self._upstream = services.upstream
        self._asked = asked
        self._is_adapter = isinstance(target, Adapter)
        self._served = target.served_name if isinstance(target, Adapter) else target.name
        self._outlet = outlet
        self.tries = PodTries(services.upstream, target.servers, hold_seconds)

    async def run(self) -> None:
        """Get the score and answer with it. The chat template is the server's."""
        await self.tries.run(self._attempt, lambda: not self._outlet.begun)

    async def _attempt(self, server: Server, credentials: ServerCredentials) -> None:
        asked = self._asked
        named: dict[str, JsonValue | msgspec.Raw] = {"model": self._served}
        prompt = await self._ask(
            server, credentials, "/tokenize", {**named, "messages": asked.messages, "add_generation_prompt": True}
        )
        completion = await self._ask(
            server, credentials, "/tokenize", {**named, "prompt": asked.completion, "add_special_tokens": False}
        )
        if prompt is None or completion is None:
            return
        prompt_ids = msgspec.json.decode(prompt, type=_Tokens).tokens
        ids = msgspec.json.decode(completion, type=_Tokens).tokens
        together: JsonValue = [*prompt_ids, *ids]
        scored = await self._ask(
            server,
            credentials,
            "/v1/completions",
            {**named, "prompt": together, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0},
        )
        if scored is None:
            return
        positions = msgspec.json.decode(scored, type=_Scored).choices[0].prompt_logprobs
        body = _encode(_score(positions[len(prompt_ids) :], ids, len(prompt_ids)))
        await self._outlet.whole(200, [JSON], body)

    async def _ask(
        self,
        server: Server,
        credentials: ServerCredentials,
        path: str,
        body: dict[str, JsonValue | msgspec.Raw],
    ) -> bytes | None:
        """A server's answer; None if it refused, which the client was told."""
        headers = {"Content-Type": "application/json"}
        async with self._upstream.ask(
            server, credentials, "POST", path, body=_encode(body), headers=headers
        ) as response:
            said = await response.read()
            if response.status < 400:
                return said
            self.tries.refused(server, response.status, adapter=self._is_adapter)
            await self._outlet.whole(response.status, [JSON], said)
            return None


def _score(
    positions: Sequence[dict[str, _Token] | None], ids: Sequence[int], prompt_tokens: int
) -> dict[str, JsonValue]:
    """The answer, for a completion of these tokens. Raises Failed if the server told of others."""
    found = [(position or {}).get(str(token)) for position, token in zip(positions, ids, strict=False)]
    tokens = [each for each in found if each is not None]
    if len(tokens) != len(ids):
        raise Failed("The server did not tell the log-probability of each token")
    logprobs = [each.logprob for each in tokens]
    return {
        "logprobs": list[JsonValue](logprobs),
        "tokens": [each.decoded_token or "" for each in tokens],
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(ids),
        "logprob_sum": sum(logprobs),
    }


def _decoded(fields: Fields, name: str, kind: type[T], message: str) -> T:
    try:
        return msgspec.json.decode(fields[name], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed("value_error", ("body", name), message) from None
