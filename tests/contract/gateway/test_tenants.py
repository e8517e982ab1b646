"""Tenants of the gateway, fuzzed over all routes that the application has.

Hypothesis draws requests of one tenant that name what belongs to another. No answer contains an identifier or a text
of the other one that the request did not contain itself; and a request is answered alike whether what it names exists
or not. Routes, parameters and bodies are read from the application, so a new route is tried without being named here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import quote, unquote, urlencode

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from claas_gateway.access.edge import OPEN
from claas_gateway.inference.routes import PATHS
from claas_gateway.information.openapi import HOT_ROUTES, METHODS
from tests.builders.two_tenants import SHARED, VERSION, Tenant, TwoTenants, two_tenants

pytestmark = pytest.mark.contract

Document = Mapping[str, JsonValue]

SAID_BY_CALLERS = frozenset({"author", "completion", "content", "correction", "feedback", "tags", "user"})
"""Fields of bodies that the gateway keeps for the caller and may tell them later: they get the caller's own texts."""
_SLOT = re.compile(r"{([^}:]+)(?::path)?}")
_STREAM_SECONDS = 0.3
_MOST_BYTES = 200_000


@dataclass(frozen=True)
class Operation:
    """A method of a route."""

    method: str
    path: str
    queries: tuple[str, ...] = ()
    body: Document | None = None

    @property
    def slots(self) -> list[str]:
        """The names of the path's parameters."""
        return _SLOT.findall(self.path)

    def filled(self, named: Mapping[str, str]) -> str:
        """The path with values in its slots."""
        return _SLOT.sub(lambda found: quote(named[found[1]], safe=""), self.path)


@dataclass(frozen=True)
class Asked:
    """A request."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: JsonValue = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All that it contains."""
        return (
            f"{unquote(self.path)} {json.dumps(self.query)} {json.dumps(self.body)} {json.dumps(dict(self.headers))}"
        )

    def about(self, mark: str, other: str) -> Asked:
        """The same about what does not exist."""
        swapped = cast(JsonValue, json.loads(json.dumps(self.body).replace(mark, other)))
        query = tuple((name, value.replace(mark, other)) for name, value in self.query)
        headers = {name: value.replace(mark, other) for name, value in self.headers.items()}
        return Asked(self.method, self.path.replace(mark, other), query, swapped, headers)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoTenants]:
    with two_tenants(tmp_path_factory.mktemp("tenants")) as found:
        yield found


@pytest.fixture(scope="module")
def client(world: TwoTenants) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=world.url, timeout=20) as client:
        yield client


def operations(world: TwoTenants) -> list[Operation]:
    """Everything that the application answers."""
    document = world.api.openapi()
    described = cast(Mapping[str, Mapping[str, Document]], document["paths"])
    found = []
    for route in world.api.routes:
        path, methods = str(getattr(route, "path", "")), getattr(route, "methods", None) or {"GET"}
        shown = path.replace(":path}", "}")
        for method in methods - {"HEAD", "OPTIONS"}:
            operation = described.get(shown, {}).get(method.lower(), {})
            found.append(Operation(method, path, _queries(operation), _body(document, operation)))
    for hot in HOT_ROUTES:
        operation = described[hot.path][hot.method]
        found.append(Operation(hot.method.upper(), hot.path, (), _body(document, operation)))
    return sorted(found, key=lambda each: (each.path, each.method))


def _queries(operation: Document) -> tuple[str, ...]:
    parameters = cast(list[Document], operation.get("parameters") or [])
    return tuple(str(each["name"]) for each in parameters if each["in"] == "query")


def _body(document: Document, operation: Document) -> Document | None:
    content = cast(Document, cast(Document, operation.get("requestBody") or {}).get("content") or {})
    described = cast(Document, content.get("application/json") or {}).get("schema")
    return _resolved(document, cast(JsonValue, described)) if described else None


def _resolved(document: Document, schema: JsonValue) -> Document:
    """A schema without references."""
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            schemas = cast(Document, cast(Document, document["components"])["schemas"])
            return _resolved(document, schemas[reference.rpartition("/")[2]])
        return {name: cast(JsonValue, _resolved(document, value)) for name, value in schema.items()}
    if isinstance(schema, list):
        return cast(Document, [_resolved(document, each) for each in schema])
    return cast(Document, schema)


def values(
    schema: Document, name: str, foreign: st.SearchStrategy[str], own: st.SearchStrategy[str]
) -> st.SearchStrategy[JsonValue]:
    """Bodies of a schema whose texts name what belongs to others, but those that callers say themselves."""
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            options = cast(list[Document], schema[choice])
            return st.one_of(*(values(each, name, foreign, own) for each in options))
    if "const" in schema or "enum" in schema:
        return st.sampled_from(cast(list[JsonValue], schema.get("enum") or [schema.get("const")]))
    match schema.get("type"):
        case "object":
            properties = cast(Mapping[str, Document], schema.get("properties") or {})
            required = set(cast(list[str], schema.get("required") or []))
            drawn = {key: values(each, key, foreign, own) for key, each in properties.items()}
            return st.fixed_dictionaries(
                {key: each for key, each in drawn.items() if key in required},
                optional={key: each for key, each in drawn.items() if key not in required},
            )
        case "array":
            items = cast(Document, schema.get("items") or {"type": "string"})
            return st.lists(values(items, name, foreign, own), min_size=1, max_size=2)
        case "integer":
            return st.sampled_from([1, 8, 32])
        case "number":
            return st.sampled_from([0.5, 1])
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case _:
            return own if name in SAID_BY_CALLERS else foreign


def requests(
    operation: Operation, foreign: st.SearchStrategy[str], own: st.SearchStrategy[str]
) -> st.SearchStrategy[Asked]:
    """Requests to a route."""
    hot = operation.path in PATHS
    numbers = st.sampled_from([str(VERSION), "1"])
    slots = {name: numbers if name in ("version", "number") else st.one_of(foreign, own) for name in operation.slots}
    counts = st.sampled_from(["1", "2"])
    queries = {
        name: counts if name in ("page", "per_page") else st.one_of(foreign, own, counts)
        for name in operation.queries
    }
    # A model's prompt is kept and told again; what feedback says of a prompt only finds an answer.
    said = own if hot else foreign
    body = values(operation.body, "", said, own) if operation.body is not None else st.none()
    if operation.path == "/v1/lora/init":
        body = st.fixed_dictionaries({"lora_id": own})
    model = st.one_of(foreign, own)

    def put_together(
        slots: dict[str, str], query: dict[str, str], body: JsonValue, model: str, headers: dict[str, str]
    ) -> Asked:
        path = operation.filled(slots)
        if hot and isinstance(body, dict):
            body = {**body, "model": model, "max_tokens": 8}
        return Asked(operation.method, path, tuple(sorted(query.items())), body, headers)

    headers = st.fixed_dictionaries(
        {"Prefer": st.sampled_from(["respond-async", "wait"])}, optional={"Idempotency-Key": foreign}
    )
    return st.builds(
        put_together,
        slots=st.fixed_dictionaries(slots),
        query=st.fixed_dictionaries({}, optional=queries),
        body=body,
        model=model,
        headers=headers,
    )


def send(client: httpx.Client, asked: Asked, credentials: Mapping[str, str]) -> tuple[int, str]:
    """Status, and headers and body as one text; of an endless answer its beginning."""
    query = f"?{urlencode(asked.query)}" if asked.query else ""
    content = json.dumps(asked.body) if asked.body is not None else None
    headers = {"Content-Type": "application/json", **asked.headers, **credentials}
    headers = {
        name: quote(value, safe=" -/") if name == "Idempotency-Key" else value for name, value in headers.items()
    }
    endless = asked.path.endswith("/events")
    timeout = httpx.Timeout(20, read=_STREAM_SECONDS if endless else 20)
    told = b""
    request = client.build_request(
        asked.method, asked.path + query, content=content, headers=headers, timeout=timeout
    )
    answer = client.send(request, stream=True)
    try:
        for piece in answer.iter_raw():
            told += piece
            if len(told) > _MOST_BYTES:
                break
    except httpx.ReadTimeout:
        assert endless, asked
    finally:
        answer.close()
    return answer.status_code, f"{answer.headers} {told.decode(errors='replace')}"


def own_texts(mark: str) -> st.SearchStrategy[str]:
    return st.sampled_from([f"{mark} says one thing", f"{mark} says another", f"{mark}-ns", f"{mark}/{mark}-coder"])


def foreign_texts(tenant: Tenant, names: set[str]) -> st.SearchStrategy[str]:
    aliases = [f"{tenant.mark}/{tenant.coder}-latest", f"{tenant.mark}-{tenant.coder}", f"{tenant.mark} idempotent"]
    return st.sampled_from(sorted(names - {tenant.key, tenant.coder_key}) + aliases)


def leaks(hidden: set[str], asked: Asked, told: str) -> list[str]:
    sent = asked.text
    return sorted(secret for secret in hidden if secret in told and secret not in sent)


def everything(client: httpx.Client, world: TwoTenants, tenant: Tenant) -> list[JsonValue]:
    """What belongs to a tenant, so that a change is seen."""

    async def stored() -> list[JsonValue]:
        store, found = world.services.store, list[JsonValue]()
        for adapter in (tenant.coder, tenant.second, SHARED):
            page = await store.feedback.page(tenant.namespace, adapter, 1, 100)
            scores = await store.history.scores(tenant.namespace, adapter)
            versions = await store.history.versions(tenant.namespace, adapter)
            rollout = await store.rollouts.get(tenant.identifiers(adapter)[2])
            found += ["\n".join(sorted(map(repr, page.items))), repr(scores), repr(versions), repr(rollout)]
        return found

    adapters = sorted(path for path in world.small.objects if "/loraadapters/" in path and tenant.namespace in path)
    return [cast(JsonValue, adapters), *world.run(stored())]


def test_every_hot_path_is_described(world: TwoTenants) -> None:
    described = {(route.path, route.method) for route in HOT_ROUTES}
    assert {path for path, _ in described} == PATHS
    listed = cast(Mapping[str, Document], world.api.openapi()["paths"])
    declared = {
        route.path.replace(":path}", "}")
        for route in world.api.routes
        if isinstance(route, APIRoute) and route.include_in_schema
    }
    assert listed.keys() == declared | PATHS
    assert all(method in METHODS or method == "parameters" for methods in listed.values() for method in methods)


@pytest.mark.parametrize("credentials", [{}, {"Authorization": "Bearer a-key-that-nobody-has"}, {"X-API-Key": "x"}])
def test_without_a_key_only_open_paths_answer_and_tell_of_nobody(
    world: TwoTenants, client: httpx.Client, credentials: dict[str, str]
) -> None:
    hidden = world.red.secrets() | world.blue.secrets()
    for operation in operations(world):
        slots = dict.fromkeys(operation.slots, world.red.coder)
        path = operation.filled(slots)
        asked = Asked(operation.method, path, body={} if operation.body is not None else None)
        status, told = send(client, asked, credentials)
        assert status == 401 or path in OPEN, f"{operation.method} {path} answered {status} without a key"
        assert leaks(hidden, asked, told) == [], path


class TestForeignKeys:
    """One tenant asks for what belongs to another; and the key of one adapter for what belongs to another one."""

    @pytest.mark.parametrize("caller", ["namespace", "session", "adapter"])
    def test_no_answer_tells_of_another_tenant(self, world: TwoTenants, client: httpx.Client, caller: str) -> None:
        red, blue = world.red, world.blue
        match caller:
            case "namespace":
                credentials, hidden, mark = {"Authorization": f"Bearer {blue.key}"}, red.secrets(), blue.mark
            case "session":
                signed = client.post("/v1/dashboard/sign-in", data={"key": blue.key})
                cookie = signed.headers["set-cookie"].split(";")[0]
                client.cookies.clear()
                credentials, hidden, mark = {"Cookie": cookie}, red.secrets(), blue.mark
            case _:
                credentials = {"X-API-Key": blue.coder_key}
                hidden, mark = red.secrets() | blue.hidden_from_coder_key(), blue.mark
        foreign = st.one_of(foreign_texts(red, red.secrets()), st.just(SHARED))
        if caller == "adapter":
            foreign = st.one_of(foreign, st.sampled_from(sorted(blue.hidden_from_coder_key() - {blue.key})))
        tried = {f"{each.method} {each.path}": each for each in operations(world)}
        before = everything(client, world, red)
        seen: set[str] = set()

        @settings(
            max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(st.data())
        def check(data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(sorted(tried)))
            asked = data.draw(requests(tried[name], foreign, own_texts(mark)))
            seen.add(name)
            status, told = send(client, asked, credentials)
            assert leaks(hidden, asked, told) == [], f"{name} {status}"
            assert status < 500 or status in (501, 503), f"{name} {status} {told}"
            nobody = asked.about(red.mark, "zedmark")
            assert send(client, nobody, credentials)[0] == status, f"{name} tells {asked} from {nobody}"

        for name, operation in tried.items():
            self._once(client, operation, credentials, hidden, red)
            seen.add(name)
        check()
        assert seen == tried.keys()
        assert everything(client, world, red) == before

    @staticmethod
    def _once(
        client: httpx.Client, operation: Operation, credentials: Mapping[str, str], hidden: set[str], red: Tenant
    ) -> None:
        """Each route at least once for each thing of the other tenant."""
        for identifier in [*red.identifiers(red.coder), red.namespace]:
            named = {name: str(VERSION) if name in ("version", "number") else identifier for name in operation.slots}
            if "namespace" in named:
                named = {**named, "namespace": red.namespace, "name": red.coder}
            path = operation.filled(named)
            query = tuple((name, identifier) for name in operation.queries if name not in ("page", "per_page"))
            asked = Asked(operation.method, path, query)
            status, told = send(client, asked, credentials)
            assert leaks(hidden, asked, told) == [], f"{operation.method} {path} {status}"
            nobody = asked.about(red.mark, "zedmark")
            assert send(client, nobody, credentials)[0] == status, path
            if not operation.slots and not operation.queries:
                return


def test_a_tenant_sees_its_own_by_the_same_routes(world: TwoTenants, client: httpx.Client) -> None:
    """Else nothing would be proven above."""
    red = world.red
    credentials = {"Authorization": f"Bearer {red.key}"}
    _, _, rollout, request, item, _, batch = red.identifiers(red.coder)
    for path in (
        "/v1/lora",
        f"/v1/feedback/{item}",
        f"/v1/feedback/{request}",
        f"/v1/dashboard/items/{item}",
        f"/v1/dashboard/batches/{batch}",
        f"/v1/dashboard/adapters/{red.namespace}/{red.coder}",
        "/v1/dashboard",
        "/v1/models",
    ):
        status, told = send(client, Asked("GET", path), credentials)
        assert status == 200, path
        assert red.mark in told, path
    chat: JsonValue = {"model": red.coder, "messages": [{"role": "user", "content": "hello"}]}
    status, told = send(client, Asked("POST", "/v1/chat/completions", body=chat), credentials)
    assert (status, red.said("answer", "anything") in told) == (200, True)
    assert rollout
