"""Debian's Chromium on the dashboard of a real store, served by uvicorn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest
import uvicorn
from playwright.async_api import Browser, ConsoleMessage, Error, Page, Request, ViewportSize, async_playwright

from claas_gateway.access.guard import Guard, OpenGuard
from claas_gateway.store.interface import Store
from claas_gateway.store.sql_store import open_store
from tests.builders.dashboard_app import dashboard_app
from tests.builders.feedback_story import Told, coder, tell
from tests.builders.gateway import FixedDirectory
from tests.cluster.host.machine import Tool, ensure_tools

Scheme = Literal["light", "dark"]
Motion = Literal["reduce", "no-preference"]
WIDE: ViewportSize = {"width": 1280, "height": 900}
NARROW: ViewportSize = {"width": 390, "height": 844}

CHROMIUM = "/usr/bin/chromium"
_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_SERVER_SECONDS = 30.0
LIVE_MILLISECONDS = 30_000
"""Longest wait for a live update; on a busy machine a page takes long."""
_TELL_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`violated ${event.effectiveDirective} ${event.blockedURI}`));
"""


@dataclass
class Visit:
    """A browser on the dashboard, and all that went wrong in it."""

    home: str
    store: Store
    told: Told
    directory: FixedDirectory
    browser: Browser
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def paths(self) -> dict[str, str]:
        """Each kind of page."""
        return {
            "home": "",
            "adapter": "/adapters/team-a/coder",
            "version": "/adapters/team-a/coder/versions/8",
            "batch": f"/batches/{self.told.batch}",
            "item": f"/items/{self.told.learned}",
            "refused": f"/items/{self.told.refused}",
            "missing": "/items/none",
        }

    async def page(
        self,
        path: str = "",
        *,
        color_scheme: Scheme = "light",
        viewport: ViewportSize = WIDE,
        reduced_motion: Motion = "no-preference",
        scripts: bool = True,
    ) -> Page:
        """A page in a browser context of its own."""
        context = await self.browser.new_context(
            color_scheme=color_scheme,
            viewport=viewport,
            reduced_motion=reduced_motion,
            java_script_enabled=scripts,
        )
        context.on("request", self._requested)
        context.on("console", self._said)
        context.on("weberror", lambda error: self._failed(error.error))
        await context.add_init_script(_TELL_VIOLATIONS)
        page = await context.new_page()
        await page.goto(self.home + path)
        return page

    def _requested(self, request: Request) -> None:
        self.requests.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _failed(self, error: Error) -> None:
        self.complaints.append(error.message)


async def until_started(server: uvicorn.Server) -> None:
    """Wait; uvicorn has no event for it."""
    async with asyncio.timeout(_SERVER_SECONDS):
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture
def guard() -> Guard:
    """Who is admitted; a test may have another one."""
    return OpenGuard()


@pytest.fixture
async def visit(tmp_path: Path, guard: Guard) -> AsyncIterator[Visit]:
    """A dashboard with the story of one adapter."""
    ensure_tools((Tool(CHROMIUM, "chromium"),))
    directory = FixedDirectory([coder()])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        async with open_store(f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}") as store, async_playwright() as drama:
            told = await tell(store, now=datetime.now(UTC))
            server = uvicorn.Server(uvicorn.Config(dashboard_app(store, directory, guard), log_level="warning"))
            serving = asyncio.create_task(server.serve([listening]))
            await until_started(server)
            browser = await drama.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
            home = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/dashboard"
            try:
                yield Visit(home, store, told, directory, browser)
            finally:
                await browser.close()
                server.should_exit = server.force_exit = True
                await serving
