"""The official openai client, unmodified, against the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.simulation.openai_server import LOGPROB, OpenAIServer, Script
from tests.unit.gateway.inference.asking import ANSWER, Asking, asking

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@asynccontextmanager
async def client_of(script: Script) -> AsyncIterator[tuple[openai.AsyncOpenAI, Asking]]:
    async with (
        asking(OpenAIServer(script)) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client, gateway


async def test_chats_streams_tools_log_probabilities_and_models_work() -> None:
    async with client_of(Script(tool_calls=True)) as (client, gateway):
        answer = await client.chat.completions.create(
            model="coder", messages=MESSAGES, logprobs=True, top_logprobs=2, seed=1, stop=["\n"], user="u1"
        )
        choice = answer.choices[0]
        assert choice.message.content == ANSWER
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [each.logprob for each in choice.logprobs.content] == [LOGPROB] * len(ANSWER)
        stream = await client.chat.completions.create(
            model="coder", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == ANSWER
        assert chunks[-1].usage is not None
        called = await client.chat.completions.create(model="coder", messages=MESSAGES, tools=[TOOL])
        assert called.choices[0].finish_reason == "tool_calls"
        assert called.choices[0].message.tool_calls is not None
        text = await client.completions.create(model="coder", prompt="Once", n=2)
        assert [each.text for each in text.choices] == [ANSWER, ANSWER]
        assert [model.id async for model in client.models.list()] == ["base", "coder"]
        assert len(gateway.front.store.kept) == 5
        assert all(each.trainable for each in gateway.front.store.kept)


async def test_errors_are_the_clients_own_exceptions() -> None:
    async with client_of(Script(status=400)) as (client, _):
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await client.chat.completions.create(model="coder", messages=MESSAGES)
        with pytest.raises(openai.NotFoundError, match="coder"):
            await client.chat.completions.create(model="nobody", messages=MESSAGES)


async def test_an_error_in_the_midst_of_a_stream_is_raised_and_the_rollout_is_not_whole() -> None:
    async with client_of(Script(fails_midway=True)) as (client, gateway):
        stream = await client.chat.completions.create(model="coder", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="it failed"):
            async for _ in stream:
                pass
        assert [each.incomplete for each in gateway.front.store.kept] == ["ServerFailed"]
