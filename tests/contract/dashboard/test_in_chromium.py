"""The dashboard in a real browser: looks, accessibility, keyboard, live updates, and what it never does."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from claas_gateway.access.callers import Caller
from tests.builders.dashboard_app import ChosenCaller
from tests.builders.feedback_story import coder, item, store_item
from tests.contract.dashboard.conftest import LIVE_MILLISECONDS, NARROW, WIDE, Motion, Scheme, Visit

pytestmark = pytest.mark.contract

SIZES = {"wide": WIDE, "narrow": NARROW}
KINDS = ("home", "adapter", "version", "batch", "item", "refused", "missing")


async def more_feedback(visit: Visit, identifier: str, text: str = "Cite the page.") -> None:
    stored = replace(item(identifier, "team-a", "coder", text, datetime.now(UTC)), tags=("fresh",))
    await store_item(visit.store, stored, "Where is that written?", "In the manual.")


async def wait_until_live(page: Page) -> None:
    await expect(page.locator("[data-live-text]")).to_have_text("live", timeout=LIVE_MILLISECONDS)


@pytest.mark.parametrize(("scheme", "size"), [("light", "narrow"), ("light", "wide"), ("dark", "wide")])
async def test_axe_finds_nothing_serious_on_any_page(visit: Visit, scheme: Scheme, size: str) -> None:
    page = await visit.page(color_scheme=scheme, viewport=SIZES[size], reduced_motion="reduce")
    for kind in KINDS:
        await page.goto(visit.home + visit.paths[kind])
        found = (await Axe().run(page)).response["violations"]
        serious = [
            (each["id"], [node["html"][:200] for node in each["nodes"]])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == [], kind


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
async def test_pages_fit_their_window_and_are_there_to_be_looked_at(
    visit: Visit, scheme: Scheme, size: str, tmp_path: Path
) -> None:
    pictures = Path(os.environ.get("CLAAS_PICTURES", tmp_path))
    page = await visit.page(color_scheme=scheme, viewport=SIZES[size])
    for kind in KINDS:
        await page.goto(visit.home + visit.paths[kind])
        picture = pictures / f"{kind}-{scheme}-{size}.png"
        await page.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 5_000
        overhang = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overhang == 0, kind


async def test_nothing_is_asked_of_another_host_and_nothing_violates_the_policy(visit: Visit) -> None:
    page = await visit.page()
    for path in visit.paths.values():
        await page.goto(visit.home + path)
    await wait_until_live(await visit.page())
    hosts = {urlsplit(url).netloc for url in visit.requests}
    assert hosts == {urlsplit(visit.home).netloc}
    # A browser says so of the one page that is missing.
    assert [each for each in visit.complaints if "404" not in each] == []


async def test_the_policy_stops_what_is_inline(visit: Visit) -> None:
    page = await visit.page()
    await page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
          document.body.setAttribute("style", "color: red");
        }"""
    )
    await expect(page.locator("h1")).to_be_visible()
    assert await page.evaluate("window.ran") is None
    assert sorted(each.split()[1] for each in visit.complaints if each.startswith("violated")) == [
        "script-src-elem",
        "style-src-attr",
    ]


async def test_a_change_appears_without_a_reload_and_is_said(visit: Visit) -> None:
    page = await visit.page()
    await wait_until_live(page)
    await page.evaluate("window.mark = 1")
    await more_feedback(visit, "fb-coder-later")
    await expect(page.locator("text=Cite the page.")).to_be_visible(timeout=LIVE_MILLISECONDS)
    await expect(page.locator("[data-announce]")).to_have_text(
        "coder: Serving, version 11 in service, 3 items waiting."
    )
    assert await page.evaluate("window.mark") == 1


async def test_a_change_in_the_cluster_appears_too(visit: Visit) -> None:
    page = await visit.page(visit.paths["adapter"])
    await wait_until_live(page)
    visit.directory.known[:] = [coder(ready="NoReadyPods")]
    visit.directory.tell("team-a", "coder")
    await expect(page.locator("section[data-live=state]")).to_contain_text("NoReadyPods", timeout=LIVE_MILLISECONDS)


async def test_focus_scroll_and_what_was_typed_survive_an_update(visit: Visit) -> None:
    page = await visit.page(visit.paths["adapter"])
    await wait_until_live(page)
    await page.fill("input[name=tag]", "half-typed")
    link = page.locator(f"a[href$='/items/{visit.told.waiting}']")
    await link.focus()
    scrolled = await page.evaluate("window.scrollY")
    await more_feedback(visit, "fb-coder-later")
    await expect(page.locator("text=Cite the page.")).to_be_visible(timeout=LIVE_MILLISECONDS)
    await expect(link).to_be_focused()
    assert await page.input_value("input[name=tag]") == "half-typed"
    assert abs(await page.evaluate("window.scrollY") - scrolled) <= 60


@pytest.mark.parametrize("guard", [ChosenCaller(Caller("key", "team-b"))], ids=["of-another-tenant"])
async def test_another_tenants_change_is_not_heard_of(visit: Visit) -> None:
    page = await visit.page()
    await wait_until_live(page)
    before = len(visit.requests)
    await more_feedback(visit, "fb-coder-later")
    await page.wait_for_timeout(4_000)
    assert visit.requests[before:] == []
    assert "coder" not in await page.content()


async def test_the_keyboard_reaches_everything_in_order_and_the_focus_is_seen(visit: Visit) -> None:
    page = await visit.page(visit.paths["adapter"])
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to content"
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.closest('main') !== null")
    wanted = await page.evaluate(
        "document.querySelectorAll('a[href], button:not([hidden]), input, select, summary, [tabindex=\"0\"]').length"
    )
    await page.reload()
    reached = 0
    places: list[int] = []
    for _ in range(wanted):
        await page.keyboard.press("Tab")
        place, outline = await page.evaluate(
            """() => {
              const here = document.activeElement;
              return [[...document.querySelectorAll("*")].indexOf(here), getComputedStyle(here).outlineStyle];
            }"""
        )
        assert outline != "none"
        places.append(place)
        reached += 1
    assert places == sorted(set(places))
    assert reached == wanted


async def test_the_switch_changes_the_theme_and_the_server_remembers_it(visit: Visit) -> None:
    page = await visit.page(color_scheme="light")
    light = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    switch = page.locator("[data-theme-switch]")
    await switch.click()
    await switch.click()
    await expect(switch).to_have_text("Theme: dark")
    await page.reload()
    assert await page.locator("html").get_attribute("data-theme") == "dark"
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") != light


async def test_without_scripts_pages_are_whole_and_reload_themselves(visit: Visit) -> None:
    page = await visit.page(visit.paths["adapter"], scripts=False)
    await expect(page.locator("h1")).to_contain_text("coder")
    await expect(page.locator("figure svg").first).to_be_visible()
    assert await page.locator("meta[http-equiv=refresh]").get_attribute("content") == "30"
    await expect(page.locator("[data-theme-switch]")).to_be_hidden()


async def test_a_hostile_text_is_shown_as_it_is(visit: Visit) -> None:
    text = '<img src=x onerror="window.ran = true"><script>window.ran = true</script>'
    await more_feedback(visit, "fb-coder-hostile", text)
    page = await visit.page("/items/fb-coder-hostile")
    await expect(page.locator(".said .block")).to_have_text(text)
    assert await page.evaluate("window.ran") is None
    assert visit.complaints == []


async def test_a_point_of_the_chart_leads_to_its_version(visit: Visit) -> None:
    page = await visit.page(visit.paths["adapter"])
    await page.locator("figure circle[data-version='7']").first.click()
    await expect(page.locator("h1")).to_contain_text("Version 7")


async def test_who_wants_no_motion_gets_none(visit: Visit) -> None:
    wishes: dict[Motion, str] = {"reduce": "none", "no-preference": "fresh"}
    for wish, name in wishes.items():
        page = await visit.page(reduced_motion=wish)
        await page.evaluate("document.querySelector('tbody tr').classList.add('fresh')")
        assert await page.evaluate("getComputedStyle(document.querySelector('.fresh')).animationName") == name
