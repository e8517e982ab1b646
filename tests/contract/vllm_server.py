"""A real vLLM API server on the CPU, as a child process with a log file."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_SECONDS = 480.0
BASE_MODEL = "tiny"


@dataclass(frozen=True)
class CompanionSetup:
    """The files the companion is given."""

    token_file: Path
    alias_dir: Path


@dataclass
class VllmServer:
    """A running server. `restart` stops it without warning and starts it again on the same port."""

    model: Path
    log: Path
    companion: CompanionSetup | None
    api_key: str | None
    environment: dict[str, str]
    flags: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def launch(self) -> "VllmServer":
        """Start the process and return at once."""
        self.port = self.port or free_port()
        arguments = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model),
            "--served-model-name", BASE_MODEL, "--host", "127.0.0.1", "--port", str(self.port),
            "--enable-lora", "--max-lora-rank", "8", "--max-loras", "4", "--api-server-count", "1",
            "--max-model-len", "16384", "--max-num-seqs", "16", "--dtype", "float32", "--enforce-eager",
        ]  # fmt: skip
        environment = {
            **os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
            "TORCHDYNAMO_DISABLE": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        arguments += self.flags
        if self.companion:
            arguments += ["--middleware", "claas_vllm.Companion"]
            arguments += ["--worker-extension-cls", "claas_vllm.WeightExport"]
            environment["PYTHONPATH"] = str(REPOSITORY / "vllm_companion" / "src")
            environment["CLAAS_TOKEN_FILE"] = str(self.companion.token_file)
            environment["CLAAS_ALIAS_DIR"] = str(self.companion.alias_dir)
        if self.api_key:
            arguments += ["--api-key", self.api_key]
        environment.update(self.environment)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                arguments, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self

    def wait_until_ready(self) -> "VllmServer":
        """Wait for `/health`. Raises RuntimeError with the end of the log when the server ends or is late."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/health", timeout=2.0, trust_env=False).status_code == httpx.codes.OK:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        end = self.log.read_text(errors="replace")[-3000:]
        self.stop()
        raise RuntimeError(f"vLLM did not start; the end of {self.log}:\n{end}")

    def wait_for_end(self) -> int:
        """Wait until the process ends by itself, and return its exit code."""
        if self.process is None:
            raise RuntimeError("the server was not launched")
        return self.process.wait(timeout=START_TIMEOUT_SECONDS)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server and its children, by its own process group."""
        if self.process is None:
            return
        for number, patience_seconds in ((how, 15.0), (signal.SIGKILL, 15.0)):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            try:
                self.process.wait(timeout=patience_seconds)
            except subprocess.TimeoutExpired:
                continue
            if number is signal.SIGKILL:
                break
        self.process = None

    def restart(self) -> "VllmServer":
        """Kill the server as the kernel would, and start it again."""
        self.stop(signal.SIGKILL)
        return self.launch().wait_until_ready()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
