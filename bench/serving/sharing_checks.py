"""What is claimed of sharing a running vLLM's weights, checked beside a real one on a GPU."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from bench.serving.felt import Clients
from bench.serving.namespaces import in_own_namespaces
from bench.serving.server import BASE_NAME, Server
from bench.serving.updates import NAME, Pod, Way
from claas_contract.outcome import FailureReason
from claas_trainer.gpu import visible_gpus
from claas_vllm_client import VllmClient

ROOT = Path(__file__).resolve().parents[2]
_STEPS = 20
_PROMPTS, _PROMPT_TOKENS, _ASKED = 16, 64, 5
_MEMORY_NOISE_MB = 64.0
_LEAVES_SECONDS = 2.0
_MORE_THAN_VLLM = 1.5
"""Times as far as vLLM's forward may the mapped one be from one in float32, on average: both round to bf16."""
_MODELS = {"base": BASE_NAME, "adapter": NAME}


class Checks:
    """One server's; in the order of the methods."""

    def __init__(self, folder: Path, model: Path, shape: str, server: Server, pod: Pod, empty_mb: float) -> None:
        """`empty_mb`: what was taken of the GPU before the server was started."""
        self._folder, self._model, self._shape, self._server, self._pod = folder, model, shape, server, pod
        self._empty_mb = empty_mb
        self._export = folder / "export.json"
        self._checksum = 0

    def before(self) -> None:
        """What the weights are before anybody trained on them."""

        async def export() -> object:
            async with VllmClient(self._server.url, control_token=self._server.token_file.read_text()) as client:
                return await client.export_weights()

        self._export.write_text(json.dumps(asyncio.run(export())))
        self._checksum = self._observed()["checksum"]
        self._taken = taken_mb()
        tensors = json.loads(self._export.read_text())["tensors"]
        say(f"vLLM exports {len(tensors)} tensors; {self._taken:,.0f} MB of the GPU are taken")

    def logprobs(self) -> None:
        """The trainer's forward on the mapped weights against vLLM's own, by base model and adapter."""
        draw = random.Random(7)
        prompts = [[draw.randrange(1000) for _ in range(_PROMPT_TOKENS)] for _ in range(_PROMPTS)]
        served = {name: [self._next(model, prompt) for prompt in prompts] for name, model in _MODELS.items()}
        again = [self._next(BASE_NAME, prompt) for prompt in prompts]
        asked = [list(likely)[:_ASKED] for likely in served["base"]]
        questions = self._folder / "prompts.json"
        questions.write_text(json.dumps({"prompts": prompts, "asked": asked}))
        adapter = self._pod.storage / "versions" / str(self._pod.newest)
        found = self._observed("--prompts", str(questions), "--adapter", str(adapter))
        first = [[likely[token] for token in tokens] for likely, tokens in zip(served["base"], asked, strict=True)]
        exact = [dict(zip(tokens, values, strict=True)) for tokens, values in zip(asked, found["exact"], strict=True)]
        vllms, ours = _off(exact, first, asked), _off(exact, found["base"], asked)
        say("log-probability of the next token, differences in nats (mean, most):")
        say(f"  vLLM's forward and itself, asked twice: {_summary(_off(again, first, asked))}")
        say(f"  vLLM's forward and one in float32:      {_summary(vllms)}")
        say(f"  the mapped forward and one in float32:  {_summary(ours)}")
        for name, theirs in served.items():
            say(f"  the mapped forward and vLLM's, {name}: {_summary(_off(theirs, found[name], asked))}")
        assert _mean(ours) <= _MORE_THAN_VLLM * _mean(vllms), "the mapped forward is another model"

    def _next(self, model: str, prompt: list[int]) -> dict[int, float]:
        """The likeliest next tokens, by vLLM."""
        body = {
            "model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 20,
            "return_tokens_as_token_ids": True,
        }  # fmt: skip
        answer = httpx.post(f"{self._server.url}/v1/completions", json=body, timeout=60, trust_env=False)
        top = answer.raise_for_status().json()["choices"][0]["logprobs"]["top_logprobs"][0]
        return {int(token.rpartition(":")[2]): value for token, value in top.items()}

    def twenty_steps(self) -> None:
        """A trainer in namespaces of its own takes steps on the weights."""
        script = [sys.executable, str(ROOT / "bench/sharing.py"), "--shape", self._shape, "--role", "train"]
        done = subprocess.run(
            in_own_namespaces([*script, "--export", str(self._export), "--steps", str(_STEPS)]),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        found = json.loads(done.stdout)
        times = sorted(found.pop("steps_s"))
        say(f"{_STEPS} steps in namespaces of its own, {times[_STEPS // 2]:.3f} s each: {found}")
        self._unchanged("after them")

    def trainer_killed(self, way: Way) -> None:
        """SIGKILL to the trainer in mid-step, under traffic."""
        clients = Clients(self._server.url, NAME, 8, 1000, 128, self._folder / "trainer-killed")
        clients.start(1.0)
        update = self._pod.start(way)
        update.wait_for("fitted")
        time.sleep(0.7)
        update.kill()
        felt = clients.stop(linger_seconds=3.0)
        assert felt.failures == [], felt.failures
        say(f"trainer killed in mid-step: {felt.answered} requests answered, none failed")
        self._unchanged("after it")

    def vllm_killed(self, way: Way) -> None:
        """SIGKILL to vLLM in mid-step: the trainer leaves, and nothing stays on the GPU."""
        update = self._pod.start(way)
        update.wait_for("fitted")
        time.sleep(0.3)
        started = time.monotonic()
        self._server.stop(signal.SIGKILL)
        update.wait_for("worker-ended")
        left = update.told["worker-ended"] - started
        update.process.wait()
        say(f"vLLM killed in mid-step: the trainer left {left:.1f} s later, reason {update.result.reason}")
        assert update.result.reason is FailureReason.SERVING_LOST, update.result
        assert left < _LEAVES_SECONDS + 0.5
        deadline = time.monotonic() + 15
        while (taken := taken_mb()) > self._empty_mb + _MEMORY_NOISE_MB and time.monotonic() < deadline:
            time.sleep(0.2)
        say(f"GPU memory then, against that before vLLM was started: {taken - self._empty_mb:+,.0f} MB")
        assert taken <= self._empty_mb + _MEMORY_NOISE_MB, "memory of a process that is gone"

    def _unchanged(self, when: str) -> None:
        assert self._observed()["checksum"] == self._checksum, "the served weights changed"
        time.sleep(1.0)
        more = taken_mb() - self._taken
        say(f"{when}: checksum unchanged, GPU memory {more:+,.0f} MB")
        assert more < _MEMORY_NOISE_MB, "something leaked"

    def _observed(self, *arguments: str) -> dict[str, Any]:
        script = [sys.executable, str(ROOT / "bench/serving/observer.py"), "--model", str(self._model)]
        done = subprocess.run(
            [*script, "--export", str(self._export), *arguments], stdout=subprocess.PIPE, check=True, text=True,
            env=os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def _off(theirs: list[dict[int, float]], ours: list[list[float]], asked: list[list[int]]) -> list[float]:
    """The differences of two forwards, prompt by prompt, where both told."""
    return [
        abs(likely[token] - value)
        for likely, values, tokens in zip(theirs, ours, asked, strict=True)
        for value, token in zip(values, tokens, strict=True)
        if token in likely
    ]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _summary(values: list[float]) -> str:
    return f"{_mean(values):.4f}, {max(values):.4f} ({len(values)} compared)"


def taken_mb() -> float:
    """GPU memory in use, everybody's."""
    return sum(gpu.total_bytes - gpu.free_bytes for gpu in visible_gpus()) / 1e6


def say(message: str) -> None:
    """A line that is there at once."""
    print(message, flush=True)
