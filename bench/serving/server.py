"""A real vLLM for the bench, as a child process with the companion in it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-control-token"
BASE_NAME = "base"
_START_TIMEOUT_SECONDS = 480.0
_END_TIMEOUT_SECONDS = 30.0


@dataclass
class Server:
    """vLLM over one folder. `flags`: beside those that every server here has."""

    model: Path
    folder: Path
    on_gpu: bool
    flags: tuple[str, ...]
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token_file(self) -> Path:
        """The control token, where companion and trainer read it."""
        return self.folder / "token"

    def start(self) -> float:
        """Start it and wait until it answers; how many seconds that took. Raises RuntimeError."""
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.token_file.write_text(TOKEN)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        with (self.folder / "vllm.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), env=self._environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        while time.monotonic() - started < _START_TIMEOUT_SECONDS and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", timeout=2.0, trust_env=False).status_code == httpx.codes.OK:
                    return time.monotonic() - started
            except httpx.TransportError:
                time.sleep(0.25)
        end = (self.folder / "vllm.log").read_text(errors="replace")[-6000:]
        self.stop()
        raise RuntimeError(f"vLLM did not start; the end of its log:\n{end}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it with all its processes."""
        if self.process is None:
            return
        for number in (how, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(_END_TIMEOUT_SECONDS)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.process = None

    def _command(self) -> list[str]:
        return [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model),
            "--served-model-name", BASE_NAME, "--host", "127.0.0.1", "--port", str(self.port), "--enable-lora",
            "--max-lora-rank", "32", "--max-loras", "2", "--max-cpu-loras", "4", "--max-model-len", "2048",
            "--middleware", "claas_vllm.Companion", *self.flags,
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(ROOT / "vllm_companion/src"), os.environ.get("PYTHONPATH", "")]))
        ours = {
            "PYTHONPATH": path, "CLAAS_TOKEN_FILE": str(self.token_file),
            "CLAAS_ALIAS_DIR": str(self.folder / "aliases"), "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_LOGGING_LEVEL": "WARNING",
        }  # fmt: skip
        on_cpu = {
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        inherited = {name: value for name, value in os.environ.items() if name != "PYTORCH_CUDA_ALLOC_CONF"}
        return inherited | ours | ({} if self.on_gpu else on_cpu)
