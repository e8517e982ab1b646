"""The edge around all routes outside the hot path: keys, sessions, sizes, headers, and what is logged."""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from claas_gateway.access.callers import Caller
from claas_gateway.access.dependency import caller_of
from claas_gateway.access.edge import CONTENT_POLICY, Edge
from claas_gateway.access.guard import KeyGuard, OpenGuard
from claas_gateway.access.handlers import handle_errors
from claas_gateway.access.keys.ring import KeyRing
from claas_gateway.access.keys.secret_keys import KeyPlace
from claas_gateway.access.keys.sessions import SESSION_SECONDS
from claas_gateway.access.rates import Rates
from claas_gateway.access.sign_in import router
from claas_gateway.errors import NotFound
from claas_kube.objects.meta import Manifest
from claas_kube.resources import Resource

PLACE = KeyPlace("team", "claas-gateway-keys", None)
KEY = "a-planted-key-of-the-team"
BEARER = {"Authorization": f"Bearer {KEY}"}
BROWSER = {"Accept": "text/html,*/*"}


class Word(BaseModel):
    """A body."""

    word: int


class World:
    """A small app behind the edge."""

    def __init__(self) -> None:
        self.keys = {"app": KEY}
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.seconds = 0.0
        ring = KeyRing(self, lambda: [PLACE], lambda: self.seconds)
        self.guard = KeyGuard(ring, Rates(6, lambda: self.seconds), lambda: self.now)
        self.app = Edge(small_app(self.guard), self.guard, 1000)

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        return {"data": {entry: base64.b64encode(key.encode()).decode() for entry, key in self.keys.items()}}


def small_app(guard: KeyGuard | OpenGuard) -> FastAPI:
    app = FastAPI()
    handle_errors(app)
    app.include_router(router(guard))

    @app.get("/v1/dashboard")
    async def page(caller: Annotated[Caller, Depends(caller_of)]) -> HTMLResponse:
        return HTMLResponse(f"<p>{caller.namespace}</p>")

    @app.post("/v1/dashboard/change")
    @app.get("/v1/private")
    async def private(caller: Annotated[Caller, Depends(caller_of)]) -> str:
        return caller.key_name

    @app.get("/v1/models")
    async def missing() -> str:
        raise NotFound("no such model")

    @app.post("/v1/words")
    async def words(word: Word, request: Request) -> int:
        return len(await request.body())

    @app.get("/v1/broken")
    async def broken() -> str:
        raise RuntimeError("planted text of a client")

    @app.get("/health")
    async def health() -> str:
        return "healthy"

    return app


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(world.app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="https://gateway") as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/private", "/v1/models", "/v1/broken", "/no/such/route", "/docs/", "/health/"])
async def test_nothing_is_told_without_a_key_unless_its_path_is_open(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "Authorization: Bearer" in answer.json()["detail"]


async def test_openai_routes_refuse_in_openai_s_shape(client: httpx.AsyncClient) -> None:
    refused, missing = await client.get("/v1/models"), await client.get("/v1/models", headers=BEARER)
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert missing.status_code == 404
    assert missing.json() == {
        "error": {"message": "no such model", "type": "not_found_error", "param": None, "code": "model_not_found"},
        "detail": "no such model",
    }


@pytest.mark.parametrize(
    "headers", [BEARER, {"Authorization": f"bearer  {KEY}"}, {"X-API-Key": KEY}, {"X-API-KEY": f" {KEY} "}]
)
async def test_a_key_is_taken_from_either_header(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await client.get("/v1/private", headers=headers)).json() == "app"


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Basic {KEY}"}, {"Authorization": KEY}, {"X-API-Key": f"{KEY}x"}, {"Cookie": f"key={KEY}"}],
)
async def test_anything_else_is_no_key(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await client.get("/v1/private", headers=headers)).status_code == 401


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(client: httpx.AsyncClient, world: World) -> None:
    assert [(await client.get("/v1/private", headers=BEARER)).status_code for _ in range(7)] == [200] * 6 + [429]
    answer = await client.get("/v1/private", headers=BEARER)
    assert answer.headers["retry-after"] == "10"
    world.seconds += 10
    assert (await client.get("/v1/private", headers=BEARER)).status_code == 200


async def test_a_large_body_is_refused_with_and_without_its_length(client: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    for body in (b"x" * 1001, parts()):
        answer = await client.post("/v1/words", content=body, headers=BEARER)
        assert answer.status_code == 413
        assert "1000 bytes" in answer.json()["detail"]


async def test_a_large_body_without_a_key_is_refused_also_on_an_open_path(world: World) -> None:
    app = Edge(small_app(world.guard), world.guard, 10_000_000)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        assert (await client.post("/v1/dashboard/sign-in", content=b"x" * 17_000)).status_code == 413
        assert (await client.post("/v1/words", content=b"x" * 17_000, headers=BEARER)).status_code == 422


async def test_a_body_is_not_read_before_the_key_is_known(client: httpx.AsyncClient) -> None:
    def never() -> Iterator[bytes]:
        raise AssertionError("read")
        yield b""

    async def parts() -> AsyncIterator[bytes]:
        for part in never():
            yield part

    assert (await client.post("/v1/words", content=parts())).status_code == 401


async def test_a_body_in_parts_reaches_its_route(client: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b'{"wo', b'rd": ', b"7}"):
            yield part

    headers = BEARER | {"Content-Type": "application/json"}
    assert (await client.post("/v1/words", content=parts(), headers=headers)).json() == 11


async def test_a_wrong_value_is_named_but_never_quoted(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/words", json={"word": "planted"}, headers=BEARER)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "word"]
    assert "planted" not in answer.text


async def test_an_unexpected_error_is_logged_by_type_and_place_alone(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await client.get("/v1/broken", headers=BEARER)
    assert answer.status_code == 500
    assert "RuntimeError at" in caplog.text
    assert "planted" not in caplog.text
    assert "planted" not in answer.text


async def test_every_answer_has_the_headers_that_browsers_heed(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/v1/private", "/v1/dashboard", "/v1/broken"):
        answer = await client.get(path, headers=BEARER)
        assert answer.headers["content-security-policy"] == CONTENT_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_browser_without_a_key_gets_the_form_and_a_script_an_error(client: httpx.AsyncClient) -> None:
    page, script = await client.get("/v1/dashboard", headers=BROWSER), await client.get("/v1/dashboard")
    assert page.status_code == script.status_code == 401
    assert 'type="password"' in page.text
    assert "detail" in script.json()


async def signed_in(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/dashboard/sign-in", data={"key": KEY}, headers=BROWSER)


async def test_signing_in_gives_a_cookie_that_scripts_and_other_sites_can_t_use(client: httpx.AsyncClient) -> None:
    answer = await signed_in(client)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/v1/dashboard"
    cookie = answer.headers["set-cookie"]
    attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "secure", "path=/v1/dashboard"} <= attributes
    assert KEY not in cookie
    assert (await client.get("/v1/dashboard")).text == "<p>team</p>"


async def test_without_tls_the_cookie_is_not_secure_or_it_would_be_lost(world: World) -> None:
    transport = httpx.ASGITransport(world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        assert "secure" not in (await signed_in(client)).headers["set-cookie"].lower()
        assert (await client.get("/v1/dashboard")).status_code == 200


async def test_a_session_changes_nothing_and_opens_nothing_else(client: httpx.AsyncClient) -> None:
    cookie = (await signed_in(client)).headers["set-cookie"].split(";")[0]
    headers = {"Cookie": cookie}
    assert (await client.get("/v1/dashboard", headers=headers)).status_code == 200
    assert (await client.get("/v1/private", headers=headers)).status_code == 401
    assert (await client.post("/v1/dashboard/change", headers=headers)).status_code == 401
    assert (await client.get("/v1/dashboards", headers=headers)).status_code == 401


async def test_a_session_ends_with_its_time_and_with_its_key(client: httpx.AsyncClient, world: World) -> None:
    await signed_in(client)
    world.now += timedelta(seconds=SESSION_SECONDS - 1)
    assert (await client.get("/v1/dashboard")).status_code == 200
    world.now += timedelta(seconds=1)
    assert (await client.get("/v1/dashboard")).status_code == 401
    world.now -= timedelta(seconds=SESSION_SECONDS)
    assert (await client.get("/v1/dashboard")).status_code == 200
    world.keys = {"app": "another-key-of-the-team"}
    world.seconds += 60
    assert (await client.get("/v1/dashboard")).status_code == 401


async def test_a_forged_session_opens_nothing(client: httpx.AsyncClient) -> None:
    value = (await signed_in(client)).headers["set-cookie"].split(";")[0].partition("=")[2]
    version, handle, ends, signature = value.split(".")
    for forged in (
        f"{version}.{handle}.{int(ends) + 1}.{signature}",
        f"{version}.{handle}.{ends}.{'0' * len(signature)}",
        f"{version}.{'0' * len(handle)}.{ends}.{signature}",
        f"{version}.{handle}.{ends}.zz",
        f"{version}.{handle}.²",
        "v1...",
        "",
    ):
        client.cookies.clear()
        headers = {"Cookie": f"claas_session={forged}".encode()}
        answer = await client.request("GET", "/v1/dashboard", headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 401, forged


async def test_signing_out_takes_the_cookie_away(client: httpx.AsyncClient) -> None:
    await signed_in(client)
    assert (await client.post("/v1/dashboard/sign-out")).status_code == 303
    assert (await client.get("/v1/dashboard")).status_code == 401


async def test_a_wrong_key_signs_nobody_in(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/dashboard/sign-in", data={"key": "a-wrong-planted-key"})
    assert answer.status_code == 401
    assert "not a known API key" in answer.text
    assert "planted" not in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://elsewhere"}])
@pytest.mark.parametrize("path", ["/v1/dashboard/sign-in", "/v1/dashboard/sign-out"])
async def test_no_other_site_signs_a_browser_in_or_out(
    client: httpx.AsyncClient, headers: dict[str, str], path: str
) -> None:
    answer = await client.post(path, data={"key": KEY}, headers=headers)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


async def test_with_keys_off_everybody_sees_everything() -> None:
    guard = OpenGuard()
    transport = httpx.ASGITransport(Edge(small_app(guard), guard, 1000))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        assert (await client.get("/v1/dashboard")).text == "<p>None</p>"
        assert (await client.get("/v1/private", headers={"Authorization": "Bearer anything"})).json() == ""
        assert (await client.post("/v1/dashboard/sign-in", data={"key": "x"})).status_code == 303
