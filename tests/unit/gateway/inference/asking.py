"""A client of a gateway before scripted servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from pydantic import JsonValue

from claas_gateway.inference.routes import Inference
from claas_gateway.inference.supervision import Pace
from tests.builders.front import Front, front, listening
from tests.simulation.openai_server import OpenAIServer

MESSAGES: JsonValue = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
ANSWER = "The capital of France is Paris."
QUICK = Pace(tick_seconds=0.01, silent_seconds=0.05, hold_seconds=0.2)


@dataclass
class Asking:
    """A client of the gateway."""

    front: Front
    http: aiohttp.ClientSession
    url: str

    async def post(self, path: str, **body: JsonValue) -> tuple[int, str, dict[str, str]]:
        """Status, text and headers of an answer."""
        async with self.http.post(self.url + path, json=body) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return response.status, await response.text(), headers

    async def chat(self, model: str | None = "coder", **body: JsonValue) -> tuple[int, str, dict[str, str]]:
        """The same of a chat."""
        named: dict[str, JsonValue] = {"model": model} if model is not None else {}
        return await self.post("/v1/chat/completions", **named, **{"messages": MESSAGES, **body})


@asynccontextmanager
async def asking(
    *servers: OpenAIServer,
    pace: Pace | None = None,
    control_secret: str | None = "vllm-control",
    adapter_spec: Mapping[str, JsonValue] | None = None,
    **changed: str,
) -> AsyncIterator[Asking]:
    """A client of a gateway before these servers."""
    async with (
        front(*servers, control_secret=control_secret, adapter_spec=adapter_spec, **changed) as made,
        listening(Inference(made.services, pace)) as url,
        aiohttp.ClientSession() as http,
    ):
        yield Asking(made, http, url)


def said(stream: str) -> str:
    """What a stream says, joined."""
    events = [line[6:] for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in json.loads(event).get("choices", ())]
    return "".join(delta.get("content") or "" for delta in deltas)
