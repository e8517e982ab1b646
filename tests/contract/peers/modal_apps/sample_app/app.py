"""An app with a class, a function and a Server, that uses what CLaaS's own apps use of Modal."""

import os
import subprocess
import sys
import time
from pathlib import Path

import modal

MOUNTS = os.environ.get("SAMPLE_MOUNTS", "/")
SHELF = Path(MOUNTS, "sample-shelf")
LIBRARY = Path(MOUNTS, "sample-library")
PORT = 8765

app = modal.App("sample")
shelf = modal.Volume.from_name("sample-shelf", create_if_missing=True, version=2)
library = modal.Volume.from_name("sample-library", create_if_missing=True, version=2)
image = (
    modal.Image.debian_slim(python_version="3.11")
    .pip_install("numpy==2.0.0")
    .env({"SAMPLE_COLOUR": "light blue", "SAMPLE_MOUNTS": MOUNTS})
    .add_local_python_source("sample_app")
)


@app.cls(
    image=image,
    gpu="L40S",
    region="eu-west",
    volumes={str(SHELF): shelf, str(LIBRARY): library.with_mount_options(read_only=True)},
    secrets=[modal.Secret.from_name("sample-secret", required_keys=["SAMPLE_WORD"])],
    enable_memory_snapshot=True,
    max_containers=1,
    scaledown_window=30,
    timeout=60,
)
class Worker:
    @modal.enter(snap=True)
    def load(self) -> None:
        if os.environ["SAMPLE_WORD"] == "break":
            raise RuntimeError("the start is broken")
        self.steps = [f"load in {os.environ['MODAL_TASK_ID']}"]

    @modal.enter(snap=False)
    def wake(self) -> None:
        self.steps.append(f"wake in {os.environ['MODAL_TASK_ID']}")

    @modal.method()
    def tell(self, request: dict[str, object]) -> dict[str, object]:
        """Give the request back, with what the container knows."""
        return {
            "request": request,
            "steps": self.steps,
            "colour": os.environ["SAMPLE_COLOUR"],
            "word": os.environ["SAMPLE_WORD"],
            "file": __file__,
        }

    @modal.method()
    def write(self, name: str, text: str) -> None:
        """Write a file and commit it."""
        path = SHELF / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        shelf.commit()

    @modal.method()
    def read(self, name: str, reload: bool) -> str | None:
        """What a file of the mounted Volume says; None where there is none."""
        if reload:
            shelf.reload()
        path = SHELF / name
        return path.read_text() if path.exists() else None

    @modal.method()
    def reload_with_open_file(self, name: str) -> str:
        """The error that a reload has while a file is open."""
        with (SHELF / name).open():
            try:
                shelf.reload()
            except RuntimeError as error:
                return str(error)
        return ""

    @modal.method()
    def read_unmounted(self, name: str) -> bytes:
        """A file by the client, as a container may read it."""
        return b"".join(modal.Volume.from_name("sample-shelf").read_file(name))

    @modal.method()
    def write_to_library(self) -> str:
        """The error that writing to a read-only Volume has."""
        try:
            (LIBRARY / "new").write_text("x")
        except OSError as error:
            return type(error).__name__
        return ""

    @modal.method()
    def sleep(self, seconds: float) -> str:
        """Take long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.05)
        return "slept"

    @modal.method()
    def fail(self, text: str) -> None:
        """Raise an error."""
        raise ValueError(text)

    @modal.exit()
    def leave(self) -> None:
        (SHELF / "left").write_text("yes")


@app.function(image=image, cpu=2, timeout=120, volumes={str(LIBRARY): library})
def fill(name: str, text: str) -> str:
    """Write a file to the library."""
    (LIBRARY / name).write_text(text)
    library.commit()
    return os.environ.get("MODAL_ENVIRONMENT", "")


@app.server(image=image, port=PORT, routing_region="us-east", max_containers=2, scaledown_window=30)
class Site:
    @modal.enter()
    def start(self) -> None:
        host = os.environ.get("CLAAS_MODAL_LISTEN_HOST", "0.0.0.0")
        program = Path(__file__).with_name("site_program.py")
        self.process = subprocess.Popen([sys.executable, str(program), host, str(PORT)])

    @modal.exit()
    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
