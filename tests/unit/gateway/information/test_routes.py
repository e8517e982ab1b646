"""What the gateway tells of itself: health, readiness, the OpenAPI document and its page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import httpx
import pytest
from fastapi import FastAPI

from claas_gateway.access.callers import Caller
from claas_gateway.access.dependency import CALLER
from claas_gateway.information.openapi import HOT_ROUTES, complete_openapi
from claas_gateway.information.routes import router
from claas_gateway.services import Services
from claas_gateway.store.interface import Forgotten
from tests.builders.gateway import FixedDirectory, gateway_adapter, ready_server


@dataclass
class Database:
    """A store that works or not, and remembers whom it was asked to forget."""

    wrong: str | None = None
    forgotten: list[tuple[str | None, str | None, str]] = field(default_factory=list)

    async def healthy(self) -> str | None:
        return self.wrong

    async def forget_user(self, namespace: str | None, adapter: str | None, user: str) -> Forgotten:
        self.forgotten.append((namespace, adapter, user))
        return Forgotten(rollouts=3, items=2, learned=(("team", "tone", 7),), learning=(("team", "tone", "bt-1"),))


@dataclass
class Around:
    """The services that these routes use."""

    store: Database = field(default_factory=Database)
    directory: FixedDirectory = field(default_factory=FixedDirectory)
    checks: dict[str, object] = field(default_factory=dict)


@pytest.fixture
def around() -> Around:
    around = Around(directory=FixedDirectory([gateway_adapter("tone", "team"), gateway_adapter("calm", "team")]))
    around.directory.pods["team", "vllm"] = [ready_server("team", "vllm-0")]
    return around


@pytest.fixture
async def client(around: Around) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI(title="CLaaS gateway", docs_url=None, redoc_url=None)
    app.include_router(router(cast(Services, around)))
    complete_openapi(app)

    async def admitted(scope, receive, send):  # type: ignore[no-untyped-def]
        scope[CALLER] = Caller("app", "team", "tone")
        await app(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(admitted), base_url="http://gateway") as client:
        yield client


async def test_scripts_find_the_api_at_the_root(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/")).json()
    assert answer["name"] == "CLaaS API"
    assert "docs" in answer


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
async def test_health_is_told_with_200_also_when_something_does_not_work(
    client: httpx.AsyncClient, around: Around, path: str
) -> None:
    healthy = {"status": "healthy", "worker": {"status": "healthy", "error": None}}
    assert (await client.get(path)).json() == healthy
    around.directory.pods.clear()
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "degraded",
        "worker": {"status": "unhealthy", "error": "1 of 1 serving Deployments have no ready pod"},
    }


async def test_health_names_the_part_that_does_not_work_but_no_tenant(
    client: httpx.AsyncClient, around: Around
) -> None:
    around.store.wrong = "could not connect to db.internal"
    around.checks = {"batching": lambda: "ValueError of team/tone", "following": lambda: None}
    around.directory.pods.clear()
    answer = await client.get("/v1/health")
    assert answer.json()["worker"]["error"] == (
        "the database does not work; batching does not work; 1 of 1 serving Deployments have no ready pod"
    )


async def test_it_is_ready_when_the_adapters_are_listed_and_the_database_works(
    client: httpx.AsyncClient, around: Around
) -> None:
    assert (await client.get("/readyz")).status_code == 200
    around.directory.complete = False
    around.store.wrong = "gone"
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["the database does not work", "the adapters are not listed yet"]
    assert (await client.get("/livez")).status_code == 200


async def test_no_ready_server_does_not_take_the_gateway_out_of_service(
    client: httpx.AsyncClient, around: Around
) -> None:
    around.directory.pods.clear()
    assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize("user", ["user-1", "a/b", "a%2Fb", "ü ser", "data"])
async def test_a_user_s_data_is_deleted_within_what_the_key_sees(
    client: httpx.AsyncClient, around: Around, user: str
) -> None:
    answer = await client.delete(f"/v1/users/{user}/data")
    assert answer.json() == {
        "rollouts": 3,
        "items": 2,
        "learned": [{"namespace": "team", "adapter": "tone", "version": 7}],
        "learning": [{"namespace": "team", "adapter": "tone", "batch_id": "bt-1"}],
    }
    assert around.store.forgotten == [("team", "tone", user.replace("%2F", "/"))]


async def test_the_document_describes_the_hot_routes_with_keys_errors_and_examples(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    for route in HOT_ROUTES:
        operation = document["paths"][route.path][route.method]
        assert {"bearer", "apiKey"} == {name for each in operation["security"] for name in each}
        assert {"200", "401", "429", "503"} <= operation["responses"].keys()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    for path in ("/", "/health", "/v1/health", "/livez", "/readyz"):
        assert "security" not in document["paths"][path]["get"]
    assert "security" in document["paths"]["/v1/users/{user}/data"]["delete"]


async def test_every_reference_in_the_document_leads_somewhere(client: httpx.AsyncClient) -> None:
    answer = await client.get("/openapi.json")
    wanted = set(re.findall(r'"#/components/schemas/([^"]+)"', answer.text))
    assert wanted
    assert wanted <= answer.json()["components"]["schemas"].keys()


async def test_the_page_of_routes_names_all_and_loads_nothing(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    document = (await client.get("/openapi.json")).json()
    for path in document["paths"]:
        assert path in page.text
    for loaded in ("<script", "<link", "<style", "src=", "http://", "https://"):
        assert loaded not in page.text
