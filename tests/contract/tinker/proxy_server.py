"""An inference proxy on a port of this machine, as the program itself."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.contract.vllm_server import REPOSITORY, free_port

START_TIMEOUT_SECONDS = 120.0
BASE_MODEL = "tiny"
SERVED_NAME = "team/tone"
TOKEN = "a-control-token"


@dataclass
class ProxyServer:
    """A running proxy."""

    model: Path
    peer_url: str
    peer_model: str
    root: Path
    """Its folder: token, key, aliases, log; the adapter's versions are below `storage`."""
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> Path:
        return self.root / "storage"

    @property
    def log(self) -> Path:
        return self.root / "proxy.log"

    @property
    def key_file(self) -> Path:
        return self.root / "key"

    def launch(self) -> "ProxyServer":
        """Start the process and return at once."""
        self.port = self.port or free_port()
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "token").write_text(TOKEN)
        if not self.key_file.exists():
            self.key_file.write_text("tml-key-of-the-test\n")
        environment = {
            **os.environ,
            "CLAAS_MODEL": str(self.model),
            "CLAAS_MODEL_NAME": BASE_MODEL,
            "CLAAS_TINKER_BASE_MODEL": self.peer_model,
            "CLAAS_TINKER_BASE_URL": self.peer_url,
            "CLAAS_TINKER_KEY_FILE": str(self.key_file),
            "CLAAS_SERVED_NAME": SERVED_NAME,
            "CLAAS_ADAPTER_DIRECTORY": str(self.storage),
            "CLAAS_TOKEN_FILE": str(self.root / "token"),
            "CLAAS_ALIAS_DIR": str(self.root / "aliases"),
            "CLAAS_HOST": "127.0.0.1",
            "CLAAS_PORT": str(self.port),
            "PYTHONPATH": ":".join(str(each) for each in sorted(REPOSITORY.glob("*/src"))),
            "HF_HUB_OFFLINE": "1",
            **self.environment,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "claas_inference_proxy"], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        return self

    def wait_until_live(self) -> "ProxyServer":
        """Wait for `/health`. Raises RuntimeError with the end of the log when the server ends or is late."""
        return self._wait("/health")

    def wait_until_ready(self) -> "ProxyServer":
        """Wait for `/ready`, alike."""
        return self._wait("/ready")

    def stop(self) -> None:
        """End the server as the kubelet does."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=10)
        self.process = None

    def _wait(self, path: str) -> "ProxyServer":
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        said = ""
        while time.monotonic() < deadline and self.process is not None and self.process.poll() is None:
            try:
                answer = httpx.get(f"{self.url}{path}", timeout=5.0, trust_env=False)
            except httpx.TransportError:
                pass
            else:
                if answer.is_success:
                    return self
                said = answer.text
            time.sleep(0.1)
        end = self.log.read_text(errors="replace")[-3000:]
        self.stop()
        raise RuntimeError(f"the proxy did not answer {path} ({said}); the end of {self.log}:\n{end}")
