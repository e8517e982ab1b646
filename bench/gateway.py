"""What the gateway costs: its processor time for each chunk of 64 streams whose server is paced like a GPU's, and
what it adds to a short request, beside no gateway and beside a plain proxy, in turns within one run.

    python bench/gateway.py                      # in two minutes

The gateway records into SQLite meanwhile. Each part is a process of its own. Short requests go straight and through
in turns, while the streams run. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import sys

# This folder: its modules would hide others of their names, such as the standard library's `operator`.
sys.path.pop(0)

import argparse
import asyncio
import os
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import uvloop

from bench.front.clients import ShortRequests, Streams

US_A_CHUNK = 60.0
ADDED_MS = 1.5


@dataclass(frozen=True)
class Turn:
    """One turn of one proxy."""

    chunks: int
    cpu_seconds: float
    direct_ms: float
    through_ms: float
    failed: int

    @property
    def us_a_chunk(self) -> float:
        """Microseconds of processor time."""
        return self.cpu_seconds / self.chunks * 1e6

    @property
    def added_ms(self) -> float:
        """Median through it less median straight."""
        return self.through_ms - self.direct_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200, help="of each answer")
    parser.add_argument("--milliseconds", type=float, default=25.0, help="between two tokens")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each kind")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return uvloop.run(run(given, Path(folder)))


async def run(given: argparse.Namespace, folder: Path) -> int:
    """Start the processes, take turns, and print."""
    server, gateway, plain = (_free_port() for _ in range(3))
    database = folder / "gateway.db"
    started = [
        _start("paced_server.py", str(server), str(given.milliseconds)),
        _start("gateway_process.py", str(gateway), str(server), str(database)),
        _start("plain_proxy.py", str(plain), str(server)),
    ]
    turns: dict[str, list[Turn]] = {"gateway": [], "plain": []}
    try:
        for port in (server, gateway, plain):
            await _until_listening(port)
        for _ in range(given.rounds):
            turns["gateway"].append(await _turn(given, gateway, server, started[1].pid))
            turns["plain"].append(await _turn(given, plain, server, started[2].pid))
        idle = await _idle(gateway, server)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
    rows = sqlite3.connect(database).execute("SELECT count(*), count(incomplete) FROM rollouts").fetchone()
    return _told(turns, idle, rows)


async def _turn(given: argparse.Namespace, port: int, server: int, pid: int) -> Turn:
    streams = Streams(port, given.streams, given.tokens)
    through, direct = ShortRequests(port), ShortRequests(server)
    await asyncio.gather(through.open(), direct.open(), streams.start())
    await asyncio.sleep(1.0)
    chunks, cpu, until = streams.chunks, _cpu_seconds(pid), time.monotonic() + given.seconds
    asked = 0.0
    while time.monotonic() < until:
        # Their own processor time is small beside that of the streams: some 15 in a second.
        await asyncio.sleep(0.03)
        await direct.ask()
        await asyncio.sleep(0.03)
        await through.ask()
        asked += 1
    turn = Turn(
        streams.chunks - chunks,
        _cpu_seconds(pid) - cpu,
        statistics.median(direct.seconds) * 1000,
        statistics.median(through.seconds) * 1000,
        streams.failed,
    )
    await streams.stop()
    through.close()
    direct.close()
    await asyncio.sleep(0.5)
    return turn


async def _idle(port: int, server: int) -> tuple[float, float]:
    """Medians in milliseconds of a short request, straight and through the gateway, while nothing else runs."""
    through, direct = ShortRequests(port), ShortRequests(server)
    await asyncio.gather(through.open(), direct.open())
    for _ in range(100):
        await direct.ask()
        await through.ask()
    through.close()
    direct.close()
    return statistics.median(direct.seconds) * 1000, statistics.median(through.seconds) * 1000


def _told(turns: dict[str, list[Turn]], idle: tuple[float, float], rows: tuple[int, int]) -> int:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    medians = {}
    for name, taken in turns.items():
        us = statistics.median(turn.us_a_chunk for turn in taken)
        added = statistics.median(turn.added_ms for turn in taken)
        medians[name] = us, added
        each = ", ".join(f"{turn.us_a_chunk:.0f}" for turn in taken)
        waits = ", ".join(f"{turn.added_ms:.2f}" for turn in taken)
        direct = statistics.median(turn.direct_ms for turn in taken)
        chunks, failed = sum(turn.chunks for turn in taken), sum(turn.failed for turn in taken)
        print(f"{name}: {us:.1f} us a chunk ({each}); a short request {direct:.2f} ms straight, {added:.2f} more"
              f" ({waits}); {chunks} chunks, {failed} streams failed")  # fmt: skip
    print(f"while nothing else runs: {idle[0]:.2f} ms straight, {idle[1] - idle[0]:.2f} more through the gateway")
    print(f"{rows[0]} rollouts recorded, {rows[1]} of them incomplete (streams that a turn's end cut off)")
    us, added = medians["gateway"]
    missed = [f"{us:.1f} us a chunk, at most {US_A_CHUNK:g}"] if us > US_A_CHUNK else []
    missed += [f"{added:.2f} ms added, at most {ADDED_MS:g}"] if added > ADDED_MS else []
    for each in missed:
        print(f"MISSED: {each}")
    return 1 if missed else 0


def _start(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(ROOT / "bench" / "front" / script), *arguments])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def _until_listening(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return


def _cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


if __name__ == "__main__":
    sys.exit(main())
