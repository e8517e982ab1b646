"""The operator's requests, as the API server's audit log tells them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.audit import AuditLog, Calls, flags


def line(verb: str, uri: str, *, code: int = 200, stage: str = "ResponseComplete", **about: str) -> str:
    event = {"verb": verb, "requestURI": uri, "stage": stage, "userAgent": "kopf", "objectRef": about}
    return json.dumps({**event, "responseStatus": {"code": code}}) + "\n"


def test_only_what_was_logged_since_is_read_and_a_line_being_written_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text(line("get", "/old", resource="pods"))
    log = AuditLog(path)
    whole = line("get", "/new", resource="pods", name="a", namespace="team")
    with path.open("a") as file:
        file.write(whole + whole[:20])
    assert [(each.verb, each.resource, each.namespace, each.name) for each in log.new()] == [
        ("get", "pods", "team", "a")
    ]
    with path.open("a") as file:
        file.write(whole[20:])
    assert len(list(log.new())) == 1
    assert list(log.new()) == []


@pytest.mark.parametrize(
    ("logged", "kind", "counts"),
    [
        (line("get", "/x", resource="pods", name="a"), "get pods", (1, 0, 0)),
        (line("get", "/x", resource="jobs", name="a", code=404), "get jobs 404", (1, 0, 0)),
        (
            line("list", "/x?labelSelector=claas.dev%2Fjob-uid%3D7%2Capp+in+%28a%2Cb%29&limit=25", resource="pods"),
            "list pods (claas.dev/job-uid,app,limit)",
            (1, 0, 0),
        ),
        (
            line("patch", "/x", resource="distilljobs", subresource="status", name="a"),
            "patch distilljobs/status",
            (0, 1, 0),
        ),
        (line("create", "/x", resource="events", code=201), "create events", (0, 1, 0)),
        (line("create", "/x", resource="jobs", code=409), "create jobs 409", (0, 1, 0)),
        (line("watch", "/x", resource="jobs", stage="ResponseStarted"), None, (0, 0, 1)),
        (line("watch", "/x", resource="jobs"), None, (0, 0, 0)),
    ],
)
def test_reads_writes_and_watches_are_told_apart(
    tmp_path: Path, logged: str, kind: str | None, counts: tuple[int, int, int]
) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    path.write_text(logged)
    calls = Calls.of(log.new())
    assert (calls.reads, calls.writes, calls.watches) == counts
    assert dict(calls.kinds) == ({kind: 1} if kind else {})


def test_the_policy_logs_one_user_and_no_bodies(tmp_path: Path) -> None:
    flags(tmp_path / "policy.json", tmp_path / "logs" / "audit.log")
    policy = json.loads((tmp_path / "policy.json").read_text())
    assert [(rule["level"], rule.get("users")) for rule in policy["rules"]] == [
        ("Metadata", ["claas-operator"]),
        ("None", None),
    ]
