"""What a served adapter answers, through vLLM's own API or through the gateway, and how it is judged by a rule."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import httpx
from pydantic import JsonValue

from tests.stack.gateway import Gateway
from tests.tiny_model.tasks import Question, content_right, follows

MAX_TOKENS = 48
CONCURRENCY = 8
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Rollout:
    """One answer as it was sampled. `version` is what the server says answered (`name@7`), if it says; `recorded` is
    the gateway's name for it. Token ids are only there when they were asked for."""

    question: Question
    text: str
    version: str | None
    recorded: str | None = None
    prompt_token_ids: tuple[int, ...] = ()
    response_token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()

    def as_feedback(self, adapter: str, feedback: str) -> dict[str, JsonValue]:
        """Somebody's feedback on it, as the gateway takes it from clients that know nothing of rollouts."""
        return {"lora_id": adapter, "prompt": self.question.text, "response": self.text, "feedback": feedback}

    def as_sample(self, feedback: str) -> dict[str, JsonValue]:
        """The rollout with somebody's feedback, as a DistillJob takes it."""
        return {
            "user_prompt": self.question.text,
            "response": self.text,
            "feedback": feedback,
            "prompt_token_ids": list(self.prompt_token_ids),
            "response_token_ids": list(self.response_token_ids),
            "response_logprobs": list(self.logprobs),
        }


@dataclass(frozen=True)
class Score:
    """How a set of answers did: shares between 0 and 1."""

    compliance: float
    content: float


@dataclass(frozen=True)
class Server:
    """Where an adapter's servers are asked, for those who go round the gateway."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """What every request has."""


def sample_rollouts(
    server: Server, model: str, questions: Sequence[Question], *, seed: int, temperature: float = 1.0
) -> list[Rollout]:
    """Ask every question once, with token ids and log-probabilities; raises httpx.HTTPError when a request fails."""
    asking = _Asking(model, temperature, with_tokens=True)
    return asyncio.run(_ask_all(server, asking, questions, seed))


def chat(
    gateway: Gateway, model: str, questions: Sequence[Question], *, seed: int, temperature: float = 1.0
) -> list[Rollout]:
    """Ask every question once through the gateway, as an application does; raises httpx.HTTPError."""
    asking = _Asking(model, temperature, with_tokens=False)
    return asyncio.run(_ask_all(Server(gateway.url, gateway.headers), asking, questions, seed))


@dataclass(frozen=True)
class _Asking:
    model: str
    temperature: float
    with_tokens: bool


async def _ask_all(server: Server, asking: _Asking, questions: Sequence[Question], seed: int) -> list[Rollout]:
    slots = asyncio.Semaphore(CONCURRENCY)
    connected = httpx.AsyncClient(
        base_url=server.url, headers=server.headers, timeout=TIMEOUT_SECONDS, trust_env=False
    )
    async with connected as client:

        async def one(index: int, question: Question) -> Rollout:
            async with slots:
                return await _ask(client, asking, question, seed + index)

        return list(await asyncio.gather(*(one(index, question) for index, question in enumerate(questions))))


async def _ask(client: httpx.AsyncClient, asking: _Asking, question: Question, seed: int) -> Rollout:
    tokens = {"logprobs": True, "return_token_ids": True} if asking.with_tokens else {}
    answer = await client.post(
        "/v1/chat/completions",
        json={
            "model": asking.model,
            "messages": [{"role": "user", "content": question.text}],
            "max_tokens": MAX_TOKENS,
            "temperature": asking.temperature,
            "seed": seed,
            **tokens,
        },
    )
    answer.raise_for_status()
    body = answer.json()
    choice = body["choices"][0]
    told = Rollout(
        question=question,
        text=choice["message"]["content"] or "",
        version=answer.headers.get("x-claas-version"),
        recorded=answer.headers.get("x-claas-rollout"),
    )
    if not asking.with_tokens:
        return told
    return replace(
        told,
        prompt_token_ids=tuple(body["prompt_token_ids"]),
        response_token_ids=tuple(choice["token_ids"]),
        logprobs=tuple(entry["logprob"] for entry in choice["logprobs"]["content"]),
    )


def score(rollouts: Sequence[Rollout], preference: str) -> Score:
    """How many answers follow the preference, and how many are right."""
    return Score(
        compliance=sum(follows(preference, rollout.text) for rollout in rollouts) / len(rollouts),
        content=sum(content_right(rollout.question, rollout.text) for rollout in rollouts) / len(rollouts),
    )
