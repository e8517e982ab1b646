"""Rollouts through vLLM's own API: what a served adapter answers, recorded for training and judged by a rule."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from pydantic import JsonValue

from tests.tiny_model.tasks import Question, content_right, follows

MAX_TOKENS = 48
CONCURRENCY = 8
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Rollout:
    """One answer as it was sampled. `version` is what the server says answered (`name@7`), if it says."""

    question: Question
    text: str
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: str | None

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


def sample_rollouts(
    url: str, model: str, questions: Sequence[Question], *, seed: int, temperature: float = 1.0
) -> list[Rollout]:
    """Ask every question once; raises httpx.HTTPError when a request fails."""
    return asyncio.run(_ask_all(url, model, questions, seed, temperature))


async def _ask_all(
    url: str, model: str, questions: Sequence[Question], seed: int, temperature: float
) -> list[Rollout]:
    slots = asyncio.Semaphore(CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False) as client:

        async def one(index: int, question: Question) -> Rollout:
            async with slots:
                return await ask(client, model, question, seed=seed + index, temperature=temperature)

        return list(await asyncio.gather(*(one(index, question) for index, question in enumerate(questions))))


async def ask(
    client: httpx.AsyncClient, model: str, question: Question, *, seed: int, temperature: float = 1.0
) -> Rollout:
    """Ask one question through the chat route, with token ids and log-probabilities."""
    answer = await client.post(
        "/v1/chat/completions",
        json={
            "model": model,
            "messages": [{"role": "user", "content": question.text}],
            "max_tokens": MAX_TOKENS,
            "temperature": temperature,
            "seed": seed,
            "logprobs": True,
            "return_token_ids": True,
        },
    )
    answer.raise_for_status()
    body = answer.json()
    choice = body["choices"][0]
    return Rollout(
        question=question,
        text=choice["message"]["content"] or "",
        prompt_token_ids=tuple(body["prompt_token_ids"]),
        response_token_ids=tuple(choice["token_ids"]),
        logprobs=tuple(entry["logprob"] for entry in choice["logprobs"]["content"]),
        version=answer.headers.get("x-claas-version"),
    )


def score(rollouts: Sequence[Rollout], preference: str) -> Score:
    """How many answers follow the preference, and how many are right."""
    return Score(
        compliance=sum(follows(preference, rollout.text) for rollout in rollouts) / len(rollouts),
        content=sum(content_right(rollout.question, rollout.text) for rollout in rollouts) / len(rollouts),
    )
