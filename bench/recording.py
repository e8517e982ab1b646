"""What recording costs vLLM's API server: processor time a chunk without a record, with token ids, and with
log-probabilities too, in turns on one server.

    python bench/recording.py                    # on the CPU, in about three minutes

The model is tiny and random, for the API server's work does not depend on it. Streams ask for chat answers. A chunk
is a token, and more where the server falls behind, which costs less a token: so chunks are compared. The processor
time is that of the API server's process alone; the engine is another one. Exits with 1 if token ids alone cost more
than the bar.
"""

from __future__ import annotations

import sys

# This folder: its modules would hide others of their names, such as the standard library's `operator`.
sys.path.pop(0)

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("", "contract/src", "crds/src", "trainer_image/src")]

import aiohttp

from bench.serving.server import BASE_NAME, TOKEN, Server
from bench.serving.words import word
from claas_trainer.gpu import visible_gpus

_FLAGS = ("--enforce-eager", "--api-server-count", "1", "--max-num-seqs", "64")
_ON_CPU = ("--dtype", "float32")
_ON_GPU = ("--dtype", "bfloat16", "--gpu-memory-utilization", "0.3")
_WISHES = {"unrecorded": None, "ids": "ids", "ids, logprobs": "ids, logprobs"}


@dataclass(frozen=True)
class Turn:
    """Answers of one kind: how long the API server worked on them."""

    tokens: int
    chunks: int
    cpu_seconds: float

    @property
    def us_a_chunk(self) -> float:
        """Microseconds."""
        return self.cpu_seconds / self.chunks * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--answers", type=int, default=1, help="of each stream in a turn")
    parser.add_argument("--rounds", type=int, default=24, help="turns of each kind")
    parser.add_argument("--bar", type=float, default=8.0, help="per cent that token ids may cost")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recording-") as root:
        model = Path(root) / "model"
        script = [sys.executable, str(ROOT / "bench/serving/model_folder.py"), "--shape", "tiny", "--out", str(model)]
        subprocess.run(script, check=True)
        on_gpu = bool(visible_gpus())
        server = Server(model, Path(root) / "server", on_gpu, (*_FLAGS, *(_ON_GPU if on_gpu else _ON_CPU)))
        print(f"vLLM answers after {server.start():.0f} s", flush=True)
        try:
            turns = asyncio.run(_measure(server, options))
        finally:
            server.stop()
    return _report(turns, options.bar)


async def _measure(server: Server, options: argparse.Namespace) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {kind: [] for kind in _WISHES}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:
        await _turn(server, session, options, "ids, logprobs")
        for number in range(options.rounds):
            # Each kind is first, second and last equally often: what else runs on the machine comes and goes.
            kinds = list(_WISHES)[number % 3 :] + list(_WISHES)[: number % 3]
            for kind in kinds:
                turns[kind].append(await _turn(server, session, options, kind))
            print(
                f"{number + 1:3}", *(f"{kind} {turns[kind][-1].us_a_chunk:6.1f} us" for kind in _WISHES), flush=True
            )
    return turns


async def _turn(server: Server, session: aiohttp.ClientSession, options: argparse.Namespace, kind: str) -> Turn:
    before = _processor_seconds(server)
    streams = (_stream(session, number, options, kind) for number in range(options.streams))
    chunks = sum(await asyncio.gather(*streams))
    tokens = options.streams * options.answers * options.tokens
    return Turn(tokens, chunks, _processor_seconds(server) - before)


async def _stream(session: aiohttp.ClientSession, number: int, options: argparse.Namespace, kind: str) -> int:
    chunks = 0
    for answer_number in range(options.answers):
        question = " ".join(word((number * 31 + answer_number * 7 + place) % 1000) for place in range(20))
        body = {
            "model": BASE_NAME, "messages": [{"role": "user", "content": question}], "max_tokens": options.tokens,
            "ignore_eos": True, "temperature": 1.0, "stream": True,
        }  # fmt: skip
        wish = _WISHES[kind]
        headers = {"X-Claas-Token": TOKEN, **({"X-Claas-Record": wish} if wish else {})}
        async with session.post("/v1/chat/completions", json=body, headers=headers) as answer:
            answer.raise_for_status()
            data = await answer.read()
        chunks += data.count(b"\ndata: {")
        _check(data, wish, options.tokens)
    return chunks


def _check(answer: bytes, wish: str | None, tokens: int) -> None:
    """Whether there is a record where one was asked for, with every token. Raises AssertionError."""
    _, found, line = answer.rpartition(b": claas-record ")
    assert bool(found) == (wish is not None), "a record too many, or too few"
    if found:
        (output,) = json.loads(line)["calls"][0]["outputs"]
        assert len(output["token_ids"]) == tokens, "tokens are missing in a record"
        assert (output["logprobs"] is not None) == (wish == "ids, logprobs"), "log-probabilities are as asked for"


def _processor_seconds(server: Server) -> float:
    """What the API server's process, which is the parent of the engine's, has worked so far."""
    assert server.process is not None
    threads = Path(f"/proc/{server.process.pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def _report(turns: dict[str, list[Turn]], bar: float) -> int:
    print("\n| Recorded | us a chunk, least | median | most | Chunks a token | Cost, median of the rounds |")
    print("|---|---|---|---|---|---|")
    cost: dict[str, float] = {}
    for kind, taken in turns.items():
        each = sorted(turn.us_a_chunk for turn in taken)
        # A round's turns follow one another, so that what changes on the machine meets both of a pair.
        pairs = zip(taken, turns["unrecorded"], strict=True)
        cost[kind] = 100 * (statistics.median(one.us_a_chunk / plain.us_a_chunk for one, plain in pairs) - 1)
        chunks = sum(turn.chunks for turn in taken) / sum(turn.tokens for turn in taken)
        print(
            f"| {kind} | {each[0]:.1f} | {statistics.median(each):.1f} | {each[-1]:.1f} | {chunks:.2f} |"
            f" {cost[kind]:+.1f} % |"
        )
    print(f"\nToken ids alone cost {cost['ids']:+.1f} % of the API server's time a chunk; the bar is {bar:.0f} %")
    return 0 if cost["ids"] <= bar else 1


if __name__ == "__main__":
    sys.exit(main())
