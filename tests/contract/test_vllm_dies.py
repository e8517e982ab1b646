"""What becomes of the real vLLM when its engine dies while it is told to do something."""

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from claas_vllm.engine_watch import EXIT_CODE, GRACE_SECONDS
from tests.contract.site import API_KEY, TOKEN, Site

pytestmark = pytest.mark.contract

HEADERS = {"Authorization": f"Bearer {API_KEY}", "X-Claas-Token": TOKEN}
VLLM_NOTICES_SECONDS = 10.0


def engine_of(server: int) -> int:
    """The engine's process, a child of the API server's."""
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    (engine,) = (int(pid) for pid in children if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return engine


async def test_a_server_whose_engine_dies_in_the_middle_of_a_sleep_ends_and_comes_back(site: Site) -> None:
    assert site.server.process is not None
    engine = engine_of(site.server.process.pid)
    try:
        async with httpx.AsyncClient(
            base_url=site.server.url, headers=HEADERS, timeout=120.0, trust_env=False
        ) as http:
            # Stopped first, so that the call is surely under way when the engine dies.
            os.kill(engine, signal.SIGSTOP)
            call = asyncio.create_task(http.post("/sleep", params={"level": "1", "mode": "keep"}))
            await asyncio.sleep(1.0)
            assert not call.done()
            os.kill(engine, signal.SIGKILL)
            died = time.monotonic()
            code = await asyncio.to_thread(site.server.wait_for_end)
            took = time.monotonic() - died
            with pytest.raises(httpx.TransportError):
                await call
        assert code == EXIT_CODE
        assert GRACE_SECONDS <= took < GRACE_SECONDS + VLLM_NOTICES_SECONDS
        assert "engine has been dead" in site.server.log.read_text(errors="replace")
    finally:
        # The other tests share it.
        await asyncio.to_thread(site.server.restart)
