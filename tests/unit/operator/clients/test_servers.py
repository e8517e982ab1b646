"""What the operator learns of a server by asking it: a real one, with the companion, on a loopback address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi import FastAPI

from claas_operator.clients import servers
from claas_operator.clients.servers import Credentials
from claas_operator.plan.server.traits import ServerTraits
from claas_vllm import Companion


def vllm(root_path: str | None) -> FastAPI:
    """An app with what vLLM's own has."""
    app = FastAPI()
    app.root_path = root_path or ""
    app.add_api_route("/v1/models", lambda: {"data": [{"id": "base", "root": "/m", "parent": None}]})
    app.add_api_route("/is_sleeping", lambda: {"is_sleeping": False})
    app.state.args = SimpleNamespace(
        model="/m", served_model_name=["base"], disable_log_stats=True, root_path=root_path, ssl_certfile=None
    )
    app.state.vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(enable_sleep_mode=False),
        device_config=SimpleNamespace(device_type="cpu"),
        parallel_config=SimpleNamespace(worker_extension_cls=""),
        lora_config=SimpleNamespace(max_lora_rank=16, max_loras=2, target_modules=["o_proj"]),
    )
    app.add_middleware(Companion)
    return app


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    task = asyncio.ensure_future(server.serve())
    async with asyncio.timeout(10):
        while not server.started:  # noqa: ASYNC110  uvicorn has no event for it.
            await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task


@pytest.mark.parametrize("root_path", [None, "/llm/", "/v1"])
async def test_a_server_with_the_companion_tells_how_it_was_started_also_below_a_root_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root_path: str | None
) -> None:
    (tmp_path / "token").write_text("secret")
    monkeypatch.setenv("CLAAS_TOKEN_FILE", str(tmp_path / "token"))
    async with running(vllm(root_path)) as url:
        state = await servers.ask_state(url, "tone", Credentials(control_token="secret"))
        refused = await servers.ask_state(url, "tone", Credentials(control_token="wrong"))
    assert state.error == ""
    needed = root_path if root_path == "/v1" else ""
    assert (state.companion, state.root_path, state.base_models) == (True, needed, ("base",))
    assert state.traits == ServerTraits(
        sleep_mode=False,
        exports_weights=False,
        on_gpu=False,
        lora_enabled=True,
        max_lora_rank=16,
        max_loras=2,
        lora_modules=("o_proj",),
        loads_adapters=False,
        can_pause=False,
        served_model_names=("base",),
        log_stats=False,
        tls=False,
    )
    assert (refused.reachable, refused.refused) == (True, True)
