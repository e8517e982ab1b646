"""Signing in with a key, in a real browser: what a person without, with, and no longer with a key sees."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from claas_gateway.access.guard import KeyGuard
from claas_gateway.access.keys.ring import FRESH_SECONDS, KeyRing
from claas_gateway.access.keys.secret_keys import KeyPlace
from claas_gateway.access.rates import Rates
from claas_kube.objects.meta import Manifest
from claas_kube.resources import Resource
from tests.contract.dashboard.conftest import LIVE_MILLISECONDS, Scheme, Visit

pytestmark = pytest.mark.contract

KEY = "a-planted-key-of-the-team"


class Secrets:
    """The Secret with the tenant's keys, and a clock that can be put forward."""

    def __init__(self) -> None:
        self.keys = {"ada": KEY}
        self.forward = 0.0

    def now(self) -> float:
        return time.monotonic() + self.forward

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        return {"data": {entry: base64.b64encode(key.encode()).decode() for entry, key in self.keys.items()}}


@pytest.fixture
def secrets() -> Secrets:
    return Secrets()


@pytest.fixture
def guard(secrets: Secrets) -> KeyGuard:
    ring = KeyRing(secrets, lambda: [KeyPlace("team-a", "claas-gateway-keys", None)], secrets.now)
    return KeyGuard(ring, Rates(0, time.monotonic), lambda: datetime.now(UTC))


async def test_a_key_opens_the_dashboard_until_it_is_taken_back(visit: Visit, secrets: Secrets) -> None:
    page = await visit.page()
    await expect(page.get_by_label("API key")).to_be_focused()
    assert "coder" not in await page.content()
    await page.keyboard.type("a-wrong-key")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_be_visible()
    await page.get_by_label("API key").fill(KEY)
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_have_text("Adapters")
    await expect(page.locator("[data-live-text]")).to_have_text("live", timeout=LIVE_MILLISECONDS)
    secrets.keys = {"grace": "another-planted-key"}
    secrets.forward = 10 * FRESH_SECONDS
    await page.reload()
    await expect(page.get_by_label("API key")).to_be_visible()
    assert "coder" not in await page.content()


async def test_signing_out_closes_it(visit: Visit) -> None:
    page = await visit.page()
    await page.get_by_label("API key").fill(KEY)
    await page.keyboard.press("Enter")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("API key")).to_be_visible()
    await page.goto(visit.home)
    await expect(page.get_by_label("API key")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious_on_the_form(visit: Visit, scheme: Scheme) -> None:
    page = await visit.page(color_scheme=scheme)
    found = (await Axe().run(page)).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
