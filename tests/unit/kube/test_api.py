"""Requests to the API server: which are tried again, which are refused, and what is passed on of a refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from kubernetes.aio import client

from claas_kube.api import Api
from claas_kube.errors import ApiError, Conflict, Forbidden, Unavailable
from claas_kube.refusals import refusal_message
from claas_kube.resources import DISTILL_JOBS, PODS, SECRETS
from tests.builders.api_server import api_to

TEXT = "xyzzy-feedback-of-a-user"


@dataclass
class Server:
    """An API server that gives these answers, one after the other, and then pods without end."""

    answers: list[web.Response]
    asked: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        return self.answers.pop(0) if self.answers else web.json_response({"items": []})

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@asynccontextmanager
async def api_of(*answers: web.Response) -> AsyncIterator[tuple[Api, Server]]:
    server = Server(list(answers))
    async with api_to(server.answer, server.sleep) as api:
        yield api, server


def refused(status: int, message: str = "no", reason: str = "", retry_after: str | None = None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    body = {"kind": "Status", "code": status, "message": message, "reason": reason}
    return web.json_response(body, status=status, headers=headers)


@pytest.mark.parametrize(
    ("answer", "pause"),
    [
        (refused(429, "storage is (re)initializing", retry_after="1"), 1.0),
        (refused(429, "too many requests", retry_after="0.1"), 0.5),
        (refused(503, "etcd leader changed", retry_after="Wed, 21 Oct 2026 07:28:00 GMT"), 0.5),
        (refused(503, "an hour", retry_after="3600"), 30.0),
        (refused(500, "failed calling webhook"), 0.5),
        (web.Response(status=504, text="<html>a proxy</html>"), 0.5),
    ],
    ids=[
        "storage-initialising",
        "rate-limit",
        "retry-after-as-a-date",
        "long",
        "webhook-down",
        "proxy",
    ],
)
async def test_what_can_not_be_answered_now_is_asked_again(answer: web.Response, pause: float) -> None:
    async with api_of(answer) as (api, server):
        assert await api.list(PODS, "team") == []
        assert server.slept == [pause]
        assert len(server.asked) == 2


async def test_a_server_that_stays_away_is_said_to_be_unavailable_after_a_few_tries() -> None:
    async with api_of(*[refused(503, "down") for _ in range(9)]) as (api, server):
        with pytest.raises(Unavailable, match="HTTP 503: down"):
            await api.get(PODS, "team", "a")
        assert server.slept == [0.5, 1.0, 2.0]


async def test_no_connection_is_said_to_be_unavailable_too() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    # The port of the discard protocol: nobody listens on it.
    async with client.ApiClient(client.Configuration(host="http://127.0.0.1:9")) as api_client:
        with pytest.raises(Unavailable, match="no answer: ClientConnector"):
            await Api(api_client, sleep).get(PODS, "team", "a")
    assert slept == [0.5, 1.0, 2.0]


async def test_each_request_is_told_with_verb_resource_and_code_also_one_that_is_repeated() -> None:
    told: list[tuple[str, str, int | None]] = []
    server = Server([refused(503, "down"), refused(404)])

    def note(verb: str, resource: str, status: int | None, seconds: float) -> None:
        assert seconds >= 0
        told.append((verb, resource, status))

    async with api_to(server.answer, server.sleep, note) as api:
        await api.get(PODS, "team", "a")
        await api.list(PODS, "team")
        await api.apply(SECRETS, "team", {"metadata": {"name": "a"}})
        await api.merge(DISTILL_JOBS, "team", "a", {}, subresource="status")
        await api.delete(PODS, "team", "a", uid="u")
    assert told == [
        ("get", "pods", 503),
        ("get", "pods", 404),
        ("list", "pods", 200),
        ("apply", "secrets", 200),
        ("patch", "distilljobs/status", 200),
        ("delete", "pods", 200),
    ]


async def test_a_request_without_an_answer_is_told_too() -> None:
    told: list[int | None] = []

    async def sleep(seconds: float) -> None:
        return None

    async with client.ApiClient(client.Configuration(host="http://127.0.0.1:9")) as api_client:
        api = Api(api_client, sleep, lambda verb, resource, status, seconds: told.append(status))
        with pytest.raises(Unavailable):
            await api.get(PODS, "team", "a")
    assert told == [None] * 4


@pytest.mark.parametrize(("status", "kind"), [(422, ApiError), (403, Forbidden), (409, Conflict), (400, ApiError)])
async def test_a_refusal_is_not_asked_again(status: int, kind: type[ApiError]) -> None:
    async with api_of(refused(status, "spec.x: wrong")) as (api, server):
        with pytest.raises(kind, match=f"POST /api/v1/namespaces/team/pods: HTTP {status}: spec.x: wrong"):
            await api.create(PODS, "team", {"metadata": {"name": "pod"}})
        assert len(server.asked) == 1


PRIVATE: list[tuple[str, dict[str, object], str]] = [
    ("POST", {"reason": "Invalid", "message": f'Secret "a" is invalid: data: "{TEXT}"'}, "Invalid"),
    (
        "PATCH",
        {
            "reason": "Invalid",
            "message": f'spec.samples.inline[0].feedback: Invalid value: "{TEXT}": too short',
            "details": {
                "causes": [
                    {"reason": "FieldValueInvalid", "field": "spec.samples.inline[0].feedback", "message": TEXT},
                    {"reason": "FieldValueInvalid", "field": f"data[{TEXT} and more]", "message": TEXT},
                ]
            },
        },
        "Invalid: spec.samples.inline[0].feedback (FieldValueInvalid)",
    ),
    (
        "POST",
        {
            "reason": "Forbidden",
            "message": f'secrets "a" is forbidden: exceeded quota: small, requested: secrets=1, used: secrets=9, '
            f"limited: secrets=9 {TEXT}",
        },
        "Forbidden: exceeded quota: small, requested: secrets=1, used: secrets=9, limited: secrets=9",
    ),
    (
        "POST",
        {"reason": "BadRequest", "message": f'admission webhook "scan.example.com" denied the request: {TEXT}'},
        'BadRequest: admission webhook "scan.example.com" denied the request',
    ),
]


@pytest.mark.parametrize("resource", [SECRETS, DISTILL_JOBS])
@pytest.mark.parametrize(("method", "status", "said"), PRIVATE)
def test_a_refusal_to_write_what_holds_samples_is_told_without_them(
    resource: object, method: str, status: dict[str, object], said: str
) -> None:
    assert resource in (SECRETS, DISTILL_JOBS)
    path = (SECRETS if resource is SECRETS else DISTILL_JOBS).path("team", "a")
    assert refusal_message(method, path, status) == said  # type: ignore[arg-type]


def test_a_long_refusal_is_cut_and_comes_in_one_line() -> None:
    said = refusal_message("POST", PODS.path("team"), {"message": "a\nb " * 1000})
    assert len(said) == 1024
    assert "\n" not in said
