"""`modal deploy -m played_vllm.app`: the app's name is PLAYED_APP's, and it takes as many containers as
PLAYED_CONTAINERS says."""

from __future__ import annotations

import os

import modal

from .server import PORT, PlayedContainer

app = modal.App(os.environ.get("PLAYED_APP", "claas-vllm"))
image = (
    modal.Image.debian_slim(python_version="3.11")
    .env({name: os.environ[name] for name in ("PLAYED_APP", "PLAYED_CONTAINERS") if name in os.environ})
    .add_local_python_source(
        "played_vllm", "claas_bounded", "claas_modal_client", "claas_modal_vllm", "claas_vllm_client"
    )
)


@app.server(
    image=image,
    port=PORT,
    routing_region="us-east",
    max_containers=int(os.environ.get("PLAYED_CONTAINERS", "1")),
    scaledown_window=30,
)
class Vllm:
    @modal.enter()
    def start(self) -> None:
        self.container = PlayedContainer(app.name or "")
        self.container.start()
