"""Pages over a real store, as bytes over HTTP."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from claas_gateway.access.callers import EVERYTHING, Caller
from claas_gateway.dashboard import reader
from claas_gateway.records import ItemOutcome, ItemState, ProbeScore
from claas_gateway.store.interface import Store
from claas_gateway.store.sql_store import open_store
from tests.builders import feedback_story as story
from tests.builders.dashboard_app import ChosenCaller, dashboard_app
from tests.builders.gateway import FixedDirectory, gateway_adapter

HOME = "/v1/dashboard"
CODER = f"{HOME}/adapters/team-a/coder"


class Site:
    """The dashboard over a store, and a client."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.guard = ChosenCaller()
        self.directory = FixedDirectory([story.coder()])
        app = dashboard_app(store, self.directory, self.guard, lambda: story.NOW)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")

    async def get(self, path: str, status: int = 200) -> str:
        answer = await self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.text


@asynccontextmanager
async def site_over(file: Path) -> AsyncIterator[Site]:
    async with open_store(f"sqlite+aiosqlite:///{file}") as store:
        site = Site(store)
        yield site
        await site.client.aclose()


@pytest.fixture(scope="module")
def story_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the story of two tenants."""
    file = tmp_path_factory.mktemp("story") / "gateway.db"

    async def write() -> None:
        async with open_store(f"sqlite+aiosqlite:///{file}") as store:
            await story.tell(store)
            await story.tell(store, "team-b", "tone")

    asyncio.run(write())
    return file


@pytest.fixture(autouse=True)
def _nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SHARED_SECONDS", 0.0)


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_over(tmp_path / "gateway.db") as site:
        yield site


@pytest.fixture
async def site(tmp_path: Path, story_file: Path) -> AsyncIterator[Site]:
    """Seen by the first tenant."""
    shutil.copy(story_file, tmp_path / "gateway.db")
    async with site_over(tmp_path / "gateway.db") as site:
        site.guard.caller = Caller("key", "team-a")
        yield site


async def test_an_empty_store_is_a_page(empty: Site) -> None:
    page = await empty.get(HOME)
    assert "CLaaS Dashboard" in page
    assert "Page 1 of 1" in page
    assert "No feedback yet" in page


async def test_the_first_page_shows_adapters_and_recent_feedback(site: Site) -> None:
    page = await site.get(HOME)
    for text in ("What is the capital of France?", "Shorter, please.", "Serving", "rating -1", "by ada", "team-a"):
        assert text in page
    assert re.search(r'data-label="Waiting"[^>]*>2<', page)
    assert re.search(r'data-label="Learned"[^>]*>44<', page)
    assert "Page 1 of 3" in page


async def test_pages_are_counted_and_bounded(site: Site) -> None:
    assert "Page 2 of 47" in await site.get(f"{HOME}?page=2&per_page=1")
    assert "There is nothing on this page" in await site.get(f"{HOME}?page=99")
    for query in ("page=0", "per_page=0", "per_page=101", "page=x"):
        answer = await site.client.get(f"{HOME}?{query}")
        assert answer.status_code == 422
        assert isinstance(answer.json()["detail"], list)


async def test_an_adapter_that_is_gone_keeps_its_history(site: Site) -> None:
    site.directory.known.clear()
    assert "Deleted" in await site.get(HOME)
    page = await site.get(CODER)
    assert "rolled back to 7" in page
    assert "fb-coder-11-0" in page


async def test_the_adapter_page_draws_a_chart_with_a_table_of_the_same(site: Site) -> None:
    page = await site.get(CODER)
    assert page.count("<polyline") > 6
    assert "Version 8 was rolled back to 7. Rejected: 5." in page
    assert "answers briefly" in page
    assert page.count('class="rollback"') == 5
    rows = re.findall(r"in service|rolled back to 7|rejected", page.split("<caption")[1])
    assert rows.count("rejected") == 1


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("state=stored", ["fb-coder-waiting"]),
        ("state=refused", ["fb-coder-bad"]),
        ("tag=sources&state=", ["fb-coder-waiting"]),
        ("lowest_rating=0&highest_rating=0.4&tag=", ["fb-coder-bad"]),
        ("tag=sour%25", []),
    ],
)
async def test_items_are_filtered(site: Site, query: str, found: list[str]) -> None:
    page = await site.get(f"{CODER}?{query}")
    assert re.findall(r"/items/([\w-]+)", page) == found


async def test_the_filter_stays_when_pages_are_turned(site: Site) -> None:
    page = await site.get(f"{CODER}?tag=wrong&per_page=4&state=")
    assert "?tag=wrong&amp;per_page=4&amp;page=2#feedback" in page


async def test_an_item_is_followed_into_its_version(site: Site) -> None:
    page = await site.get(f"{HOME}/items/fb-coder-11-0")
    for text in (
        "It lies on the Seine.",
        "Shorter, please.",
        ">Paris.<",
        "In version 11",
        "exact",
        "terse assistant",
    ):
        assert text in page
    version = await site.get(f"{CODER}/versions/11")
    assert "fb-coder-11-0" in version
    batch = await site.get(f"{HOME}/batches/bt-coder-11")
    assert "fb-coder-11-0" in batch
    assert "forward, backward, optimiser" in batch


async def test_a_refused_item_says_why(site: Site) -> None:
    page = await site.get(f"{HOME}/items/fb-coder-bad")
    assert "Refused: SampleTooLong" in page
    assert "4,096 fit" in page


async def test_an_item_whose_texts_were_deleted_says_so(site: Site) -> None:
    await site.store.forget_user("team-a", None, "u-17")
    page = await site.get(f"{HOME}/items/fb-coder-11-0")
    assert "Its texts were deleted" in page
    assert "In version 11" in page
    for text in ("Shorter, please.", "Seine", "Paris."):
        assert text not in page


async def test_what_a_key_does_not_see_is_not_found_and_not_hinted_at(site: Site) -> None:
    places = [
        "/adapters/team-b/tone",
        "/adapters/team-b/tone/versions/3",
        "/batches/bt-tone-3",
        "/items/fb-tone-3-0",
    ]
    site.guard.caller = Caller("key", "team-b")
    seen = [await site.get(f"{HOME}{place}") for place in places]
    assert all("tone" in page for page in seen)
    for caller in (Caller("key", "team-a"), Caller("key", "team-b", "other")):
        site.guard.caller = caller
        page = await site.get(HOME)
        assert "tone" not in page
        for place in places:
            missing = await site.get(f"{HOME}{place}", 404)
            assert missing == (await site.get(f"{HOME}{place}", 404))
            assert "SampleTooLong" not in missing
    site.guard.caller = EVERYTHING
    assert "tone" in await site.get(HOME)


async def test_no_private_page_is_kept_and_nothing_inline_may_run(site: Site) -> None:
    for path in (HOME, CODER, f"{CODER}/versions/3", f"{HOME}/items/fb-coder-11-0", f"{HOME}/items/none"):
        answer = await site.client.get(path)
        assert answer.headers["cache-control"] == "no-store"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "style=" not in answer.text
        assert not re.search(r"<script(?! type=\"module\" src=)|<style| on\w+=", answer.text)


async def test_static_files_are_kept_and_addressed_by_their_content(site: Site) -> None:
    page = await site.get(HOME)
    paths = re.findall(r'(?:src|href)="(/v1/dashboard/static/[^"]+)"', page)
    assert len(set(paths)) == 3
    for path in paths:
        answer = await site.client.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    assert (await site.client.get(f"{HOME}/static/..%2froutes.py")).status_code == 404


async def test_the_script_gets_the_content_alone(site: Site) -> None:
    answer = await site.client.get(HOME, headers={"X-Claas-Fragment": "1"})
    assert "<html" not in answer.text
    assert 'data-live="adapters"' in answer.text


class Tags(HTMLParser):
    """The elements of a page, with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


HOSTILE = st.text(alphabet=st.sampled_from("<>\"'&/=`{}%;:#\\\n ascript"), min_size=1, max_size=40) | st.sampled_from(
    (
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' autofocus onfocus='alert(1)",
        "</title></svg><script>alert(1)</script>",
        "{{ 7 * 7 }}{% raw %}",
        "javascript:alert(1)",
        "]]><!--",
    )
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=HOSTILE)
async def test_whatever_is_stored_adds_no_element_and_no_attribute_to_any_page(empty: Site, text: str) -> None:
    assert await elements_with(empty, text) == await elements_with(empty, "calm")


async def elements_with(site: Site, said: str) -> list[list[tuple[str, tuple[str, ...]]]]:
    """The elements of all pages of an adapter of which every text is `said`."""
    name = f"x{sha256(said.encode()).hexdigest()[:12]}"
    if await site.store.feedback.item(f"fb-{name}") is None:
        await store_texts(site.store, name, said)
    site.directory.known = [story.coder("team-x", name, served=1)]
    site.guard.caller = Caller("key", "team-x", name)
    place = f"/adapters/team-x/{name}"
    paths = ("", place, f"{place}/versions/1", f"/batches/bt-{name}", f"/items/fb-{name}")
    return [Tags(await site.get(f"{HOME}{path}")).found for path in paths]


async def store_texts(store: Store, name: str, said: str) -> None:
    stored = replace(
        story.item(f"fb-{name}", "team-x", name, said, story.NOW),
        correction=said,
        rating=1.0,
        tags=(said,),
        author=said,
        user=said,
        training={said: said},
    )
    await story.store_item(store, stored, said, said)
    await store.batches.form(story.batch(f"bt-{name}", "team-x", name, story.NOW), [stored.id])
    batch = replace(
        story.batch(f"bt-{name}", "team-x", name, story.NOW), metrics={said: 1.0}, message=said, version=1
    )
    await store.batches.account(batch, [ItemOutcome(stored.id, ItemState.IN_VERSION, 1, said, said)])
    await store.feedback.answered_after(stored.id, said)
    seen = replace(story.version("team-x", name, 1, story.NOW), metrics={said: 0.5}, job=f"bt-{name}")
    await store.history.saw_versions([seen])
    await store.history.add_score(ProbeScore("team-x", name, 1, said, 0.5, story.NOW))


async def test_a_version_of_the_tinker_service_tells_where_it_is_and_whether_the_optimiser_came_back(
    empty: Site,
) -> None:
    serving: dict[str, JsonValue] = {"deploymentRef": None, "tinkerProxy": {}}
    empty.directory.known = [gateway_adapter("tone", "team-a", serving=serving)]
    for number, measured in enumerate((None, 1.0, 0.0), start=1):
        restored = {} if measured is None else {"optimizer_restored": measured}
        seen = story.version("team-a", "tone", number, story.NOW)
        at = f"tinker://run:train:{number}/sampler_weights/v{number}"
        await empty.store.history.saw_versions([replace(seen, weights=at, metrics={**seen.metrics, **restored})])
    page = await empty.get(f"{HOME}/adapters/team-a/tone")
    assert "<dt>Engine</dt><dd>tinker</dd>" in page
    assert page.count("optimiser not restored") == 1
    for number in (1, 2, 3):
        page = await empty.get(f"{HOME}/adapters/team-a/tone/versions/{number}")
        assert f"tinker://run:train:{number}/sampler_weights/v{number}" in page
        assert ("did not bring back" in page) is (number == 3)
