"""Steady requests against a served name: what clients feel while versions change."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

import httpx

from tests.tiny_model.tasks import questions

REQUEST_TIMEOUT_SECONDS = 180.0


@dataclass
class Felt:
    """What clients felt so far. Times are of `time.monotonic`."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    """When a piece of an answer arrived, from any client."""
    versions: list[str] = field(default_factory=list)
    """Which version answered, in the order in which answers ended."""

    def longest_gap_seconds(self, since: float, until: float) -> float:
        """The longest time in that window in which no client got anything."""
        inside = [since, *(moment for moment in self.tokens if since <= moment <= until), until]
        return max(later - earlier for earlier, later in itertools.pairwise(inside))


class Traffic:
    """Clients that each ask one question after another, streaming the answers; a `with` block bounds them."""

    def __init__(
        self,
        url: str,
        model: str,
        clients: int = 2,
        max_tokens: int = 32,
        *,
        ignore_eos: bool = False,
        pause_seconds: float = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.felt = Felt()
        self._url = url
        self._model = model
        self._clients = clients
        self._max_tokens = max_tokens
        self._ignore_eos = ignore_eos
        self._pause_seconds = pause_seconds
        self._headers = dict(headers or {})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(REQUEST_TIMEOUT_SECONDS)

    def wait_for_answers(self, count: int, timeout_seconds: float = 60.0) -> None:
        """Wait until that many more requests were answered; raises TimeoutError."""
        wanted = self.felt.answered + count
        deadline = time.monotonic() + timeout_seconds
        while self.felt.answered < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{wanted - self.felt.answered} of {count} answers still missing")
            time.sleep(0.05)

    async def _run(self) -> None:
        connected = httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=REQUEST_TIMEOUT_SECONDS, trust_env=False
        )
        async with connected as client:
            await asyncio.gather(*(self._client(client, number) for number in range(self._clients)))

    async def _client(self, client: httpx.AsyncClient, number: int) -> None:
        for index, question in enumerate(itertools.cycle(questions(40, seed=1000 + number))):
            if self._stop.is_set():
                return
            body = {
                "model": self._model,
                "messages": [{"role": "user", "content": question.text}],
                "max_tokens": self._max_tokens,
                "temperature": 1.0,
                "seed": index,
                "stream": True,
                "ignore_eos": self._ignore_eos,
            }
            try:
                await self._stream(client, body)
            except httpx.HTTPError as error:
                self.felt.failures.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.05)
            await asyncio.sleep(self._pause_seconds)

    async def _stream(self, client: httpx.AsyncClient, body: dict[str, object]) -> None:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                text = (await answer.aread()).decode()[:200]
                self.felt.failures.append(f"HTTP {answer.status_code}: {text}")
                await asyncio.sleep(0.05)
                return
            finished = False
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    self.felt.tokens.append(time.monotonic())
                    if "error" in json.loads(line.removeprefix("data: ")):
                        self.felt.failures.append(f"in mid-stream: {line[:200]}")
                finished = finished or line.startswith("data: [DONE]")
            if not finished:
                self.felt.failures.append("the stream broke off")
            self.felt.answered += 1
            self.felt.versions.append(answer.headers.get("x-claas-version", ""))
