"""Steady clients of a vLLM in a process of their own: each asks, reads its tokens as they come, and asks again.

    python bench/serving/streams.py --url http://127.0.0.1:8000 --model coder --streams 64 --vocabulary 151936 \
        --out felt.npz

Ends when its standard input does, and writes then when each token came to which stream (seconds of the system's
monotonic clock, which is one for all processes), and what failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from array import array
from pathlib import Path

import aiohttp
import numpy

_FAILURES_SHOWN = 5
_PAUSE_AFTER_FAILURE_SECONDS = 0.2


class Streams:
    """What the clients share: what they ask, and what they got."""

    def __init__(self, url: str, model: str, prompt: int, tokens: int, vocabulary: int) -> None:
        self._url, self._model = url, model
        self._prompt, self._tokens, self._vocabulary = prompt, tokens, vocabulary
        self.at, self.stream, self.count = array("d"), array("l"), array("l")
        self.answered = 0
        self.failures: list[str] = []

    async def run(self, streams: int, ended: asyncio.Event) -> None:
        """All clients, until `ended`."""
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            clients = [asyncio.create_task(self._client(number, session)) for number in range(streams)]
            await ended.wait()
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self, number: int, session: aiohttp.ClientSession) -> None:
        draw = random.Random(number)
        # Of all lengths at first: clients that began together would end and begin together ever after.
        tokens = draw.randrange(1, self._tokens)
        while True:
            try:
                await self._request(number, session, draw, tokens)
                tokens = self._tokens
                self.answered += 1
            except (aiohttp.ClientError, ValueError, OSError) as error:
                self.failures.append(f"{time.monotonic():.3f} {type(error).__name__}: {error}")
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_SECONDS)

    async def _request(self, number: int, session: aiohttp.ClientSession, draw: random.Random, tokens: int) -> None:
        body = {
            "model": self._model,
            # New each time, so that no cache answers for the prefill.
            "prompt": [draw.randrange(self._vocabulary - 8) for _ in range(self._prompt)],
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 1.0,
            "stream": True,
            "return_token_ids": True,
        }
        got = 0
        async with session.post(f"{self._url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                choices = json.loads(line[6:]).get("choices")
                if choices is None:
                    raise ValueError("an error in the stream")
                count = len(choices[0].get("token_ids") or ()) if choices else 0
                if count:
                    self.at.append(time.monotonic())
                    self.stream.append(number)
                    self.count.append(count)
                    got += count
        if got != tokens:
            raise ValueError(f"{got} of {tokens} tokens came")


async def _main(options: argparse.Namespace) -> None:
    streams = Streams(options.url, options.model, options.prompt, options.tokens, options.vocabulary)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    reading = loop.run_in_executor(None, sys.stdin.read)
    reading.add_done_callback(lambda _: ended.set())
    await streams.run(options.streams, ended)
    numpy.savez(
        options.out, at=numpy.array(streams.at), stream=numpy.array(streams.stream), count=numpy.array(streams.count)
    )
    told = {"answered": streams.answered, "failures": streams.failures}
    print(json.dumps(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--tokens", type=int, default=512, help="of each answer")
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
