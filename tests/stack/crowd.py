"""Many clients at once, and what each request took."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from dataclasses import dataclass, field

import aiohttp
import httpx

from tests.stack.gateway import Gateway
from tests.tiny_model.tasks import questions

REQUEST_TIMEOUT_SECONDS = 180.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Span:
    """A stretch of `time.monotonic`."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.began

    def touches(self, other: Span) -> bool:
        """Whether they have a moment in common."""
        return self.began < other.ended and other.began < self.ended


@dataclass
class Crowd:
    """Clients of the gateway that each ask one question after another, every other one as a stream."""

    gateway: Gateway
    model: str
    clients: int
    max_tokens: int
    answered: list[Span] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        """Ask for so long; requests that have begun end."""
        asyncio.run(self._run(time.monotonic() + seconds))

    async def _run(self, until: float) -> None:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        headers = self.gateway.headers
        async with aiohttp.ClientSession(
            self.gateway.url, headers=headers, timeout=timeout, connector=connector
        ) as session:
            await asyncio.gather(*(self._client(session, number, until) for number in range(self.clients)))

    async def _client(self, session: aiohttp.ClientSession, number: int, until: float) -> None:
        for index, question in enumerate(itertools.cycle(questions(40, seed=2000 + number))):
            began = time.monotonic()
            if began > until:
                return
            body = {
                "model": self.model,
                "messages": [{"role": "user", "content": question.text}],
                "max_tokens": self.max_tokens,
                "temperature": 1.0,
                "stream": index % 2 == 1,
            }
            try:
                async with session.post("/v1/chat/completions", json=body) as answer:
                    text = await answer.text()
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.1)
                continue
            whole = "data: [DONE]" in text if body["stream"] else '"finish_reason"' in text
            if answer.status != httpx.codes.OK or not whole or '"error"' in text:
                self.failures.append(f"HTTP {answer.status}: {text[-200:]}")
            self.answered.append(Span(began, time.monotonic()))


class SleepWatch:
    """When a server slept, by asking it again and again; a `with` block bounds it."""

    def __init__(self, url: str, token: str) -> None:
        self.pauses: list[Span] = []
        self._client = httpx.Client(base_url=url, headers={"X-Claas-Token": token}, timeout=30, trust_env=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SleepWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        self._client.close()

    def _watch(self) -> None:
        """A pause reaches from the last look that found the server awake to the first that finds it awake again."""
        awake, asleep = time.monotonic(), False
        while not self._stop.is_set():
            sleeping = bool(self._client.get("/is_sleeping").raise_for_status().json()["is_sleeping"])
            now = time.monotonic()
            if asleep and not sleeping:
                self.pauses.append(Span(awake, now))
            if not sleeping:
                awake = now
            asleep = sleeping
            time.sleep(POLL_SECONDS)
