"""Asks the prompts of a batch again, of the version that learned from it, for people to compare.

One prompt at a time, and never of a pod that sleeps. What goes wrong is left at that: it is no part of learning.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from pydantic import JsonValue

from claas_gateway.directory.models import Adapter, Server, ServerGroup
from claas_gateway.records import FeedbackItem, Rollout, RolloutKind
from claas_gateway.rollouts.visible import visible_text
from claas_gateway.store.interface import Store
from claas_gateway.upstream.servers import Upstream

log = logging.getLogger(__name__)

_MOST_WAITING = 64
_MOST_TOKENS = 512
_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_PATHS = {RolloutKind.CHAT: "/v1/chat/completions", RolloutKind.COMPLETION: "/v1/completions"}
_LEFT_OUT = frozenset(
    {"stream", "stream_options", "n", "best_of", "seed", "logprobs", "top_logprobs", "prompt_logprobs", "user"}
)
_VERSION = re.compile(r"@(\d+)")


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


@dataclass(frozen=True, slots=True)
class _Asked:
    adapter: Adapter
    version: int
    item: FeedbackItem


class Replay:
    """Prompts that wait to be asked again."""

    def __init__(self, store: Store, upstream: Upstream, most_per_batch: int) -> None:
        self._store = store
        self._upstream = upstream
        self._most = most_per_batch
        self._waiting: asyncio.Queue[_Asked] = asyncio.Queue(_MOST_WAITING)

    def add(self, adapter: Adapter, version: int, items: Sequence[FeedbackItem]) -> None:
        """Have some prompts of a batch asked again; none where too many wait already."""
        by_rollout = {item.rollout_id: item for item in reversed(items)}
        for item in list(by_rollout.values())[: self._most]:
            if not self._waiting.full():
                self._waiting.put_nowait(_Asked(adapter, version, item))

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            asked = await self._waiting.get()
            try:
                async with asyncio.timeout(_SECONDS):
                    await self._ask(asked)
            except Exception as error:  # noqa: BLE001  (learning goes on whatever this meets)
                log.info("item %s was not asked again: %s", asked.item.id, type(error).__name__)

    async def _ask(self, asked: _Asked) -> None:
        rollout = await self._store.rollouts.get(asked.item.rollout_id or "")
        if rollout is None:
            return
        server = await self._awake(asked.adapter.servers)
        credentials = await self._upstream.credentials(asked.adapter.servers)
        body = json.dumps(request_again(rollout, asked.adapter.served_name)).encode()
        headers = {"Content-Type": "application/json"}
        async with self._upstream.ask(
            server, credentials, "POST", _PATHS[rollout.kind], body=body, headers=headers
        ) as response:
            said = await response.read()
            version = _VERSION.search(response.headers.get("X-Claas-Version", ""))
            if response.status != 200 or (version is not None and int(version[1]) != asked.version):
                return
        choice = msgspec.json.decode(said, type=_Answer).choices[0]
        text = choice.text if choice.message is None else choice.message.content
        await self._store.feedback.answered_after(asked.item.id, visible_text(text or ""))

    async def _awake(self, group: ServerGroup) -> Server:
        """A pod that answers. A step's grant often outlives the step, so the pod itself is asked."""
        while True:
            server = self._upstream.choose(group)
            if server is not None and not await self._upstream.is_asleep(group, server):
                return server
            await asyncio.sleep(_LOOK_SECONDS)


def request_again(rollout: Rollout, model: str) -> dict[str, JsonValue]:
    """The request that a rollout answered, to be answered once, shortly, without chance."""
    kept = {name: value for name, value in rollout.request.items() if name not in _LEFT_OUT}
    asked = [kept.pop(name, None) for name in ("max_tokens", "max_completion_tokens")]
    most = min([_MOST_TOKENS, *(number for number in asked if isinstance(number, int) and number > 0)])
    return {**kept, "model": model, "temperature": 0, "max_tokens": most}
