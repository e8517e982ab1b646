"""The routes for answers and tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import TypeVar

from pydantic import JsonValue
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from claas_inference_proxy.adapters.loaded import Models
from claas_inference_proxy.bodies import read, read_document
from claas_inference_proxy.generation.answering import Answering
from claas_inference_proxy.generation.chunks import chat_chunks, completion_chunks
from claas_inference_proxy.generation.documents import Document, chat_document, completion_document
from claas_inference_proxy.generation.request import (
    DetokenizeBody,
    ScoreQuestion,
    TokenizeBody,
    TokenizeChatBody,
    read_chat,
    read_completion,
)
from claas_inference_proxy.responses import answering, json_response

T = TypeVar("T")


class GenerationRoutes:
    """Answers to clients."""

    def __init__(self, answers: Answering, models: Models) -> None:
        self._answers = answers
        self._models = models

    def routes(self, counted: Callable[[str, int], None]) -> list[Route]:
        """The routes; `counted` is told each route with the status of its answers."""
        table: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._complete,
            "/v1/score": self._score,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
        }
        return [Route(path, answering(handler, path, counted), methods=["POST"]) for path, handler in table.items()]

    async def _chat(self, request: Request) -> Response:
        asked = read_chat(read_document(await request.body()))
        found = await _unless_gone(request, self._answers.chat(asked))
        if asked.stream:
            return _streamed(
                chat_chunks(
                    found.heading,
                    found.prompts[0],
                    found.shown,
                    with_usage=asked.wants_usage,
                    always_usage=asked.wants_usage_always,
                )
            )
        return json_response(chat_document(found.heading, found.prompts[0], found.shown))

    async def _complete(self, request: Request) -> Response:
        asked = read_completion(read_document(await request.body()))
        found = await _unless_gone(request, self._answers.complete(asked))
        if asked.stream:
            return _streamed(
                completion_chunks(
                    found.heading,
                    found.prompts,
                    found.shown,
                    with_usage=asked.wants_usage,
                    always_usage=asked.wants_usage_always,
                )
            )
        return json_response(completion_document(found.heading, found.prompts, found.shown))

    async def _score(self, request: Request) -> Response:
        asked = read(ScoreQuestion, read_document(await request.body()))
        return json_response(await _unless_gone(request, self._answers.score(asked)))

    async def _tokenize(self, request: Request) -> Response:
        document = read_document(await request.body())
        tokenizer = self._answers.tokenizer
        if "messages" in document:
            chat = read(TokenizeChatBody, document)
            self._models.get(chat.model)
            ids = tokenizer.encode(self._answers.rendered(chat), special=chat.add_special_tokens)
            named = chat.return_token_strs
        else:
            text = read(TokenizeBody, document)
            self._models.get(text.model)
            ids = tokenizer.encode(text.prompt, special=text.add_special_tokens)
            named = text.return_token_strs
        limits = await self._answers.limits()
        return json_response(
            {
                "count": len(ids),
                "max_model_len": limits.context_length,
                "tokens": list[JsonValue](ids),
                "token_strs": list[JsonValue](tokenizer.names(ids)) if named else None,
            }
        )

    async def _detokenize(self, request: Request) -> Response:
        asked = read(DetokenizeBody, read_document(await request.body()))
        self._models.get(asked.model)
        return json_response({"prompt": self._answers.tokenizer.decode(asked.tokens)})


async def _unless_gone(request: Request, work: Coroutine[object, object, T]) -> T:
    """The result, unless the client leaves: then the work is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _streamed(documents: Iterable[Document]) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for document in documents:
            yield b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
