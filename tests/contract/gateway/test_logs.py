"""What the gateway logs while it is used, also where it fails: nothing that anybody said, and no key."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import JsonValue

from claas_gateway.__main__ import quieten
from claas_kube.resources import SECRETS
from tests.builders.api_server import refusal
from tests.builders.two_tenants import VERSION, Tenant, TwoTenants, two_tenants

pytestmark = pytest.mark.contract

PLANTED = "planted-by-a-client"
_CLIENTS = ("httpx", "httpcore", "hypothesis")
"""Loggers of this test itself."""


class Lines(logging.Handler):
    """Keeps all that is logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(_CLIENTS):
            self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[Lines]:
    root, kept = logging.getLogger(), Lines()
    before = root.level
    root.addHandler(kept)
    root.setLevel(logging.DEBUG)
    quieten()
    yield kept
    root.removeHandler(kept)
    root.setLevel(before)


def use_everything(client: httpx.Client, tenant: Tenant) -> list[int]:
    """Requests of each kind, with something private in each place that a client can put it into."""
    _, _, rollout, _, item, _, batch = tenant.identifiers(tenant.coder)
    headers = {"Authorization": f"Bearer {tenant.key}"}
    said = f"{PLANTED} {tenant.mark} says"
    messages: JsonValue = [{"role": "user", "content": said}]
    feedback: JsonValue = {
        "lora_id": tenant.coder,
        "rollout_id": rollout,
        "feedback": said,
        "correction": said,
        "author": said,
        "tags": [said],
        "user": said,
    }
    unknown: JsonValue = {"lora_id": tenant.coder, "prompt": said, "response": said, "feedback": said}
    asked: list[tuple[str, str, JsonValue]] = [
        ("POST", "/v1/chat/completions", {"model": tenant.coder, "messages": messages, "user": said}),
        ("POST", "/v1/chat/completions", {"model": tenant.coder, "messages": messages, "stream": True}),
        ("POST", "/v1/chat/completions", {"model": said, "messages": messages}),
        ("POST", "/v1/chat/completions", {"model": tenant.coder, "messages": said}),
        ("POST", "/v1/completions", {"model": tenant.coder, "prompt": said}),
        ("POST", "/v1/score", {"model": tenant.coder, "messages": messages, "completion": said}),
        ("POST", "/v1/feedback", {"requests": [feedback]}),
        ("POST", "/v1/feedback", {"requests": [feedback, unknown]}),
        ("POST", "/v1/feedback", {"requests": [unknown]}),
        ("POST", "/v1/feedback", {"requests": said}),
        ("PUT", f"/v1/versions/{tenant.coder}/{VERSION}/probes/{PLANTED}", {"value": 1}),
        ("DELETE", f"/v1/users/{PLANTED}/data", None),
        ("POST", "/v1/lora/init", {"lora_id": said}),
        ("GET", f"/v1/feedback/{item}", None),
        ("GET", f"/v1/feedback/{PLANTED}", None),
        ("GET", f"/v1/dashboard/items/{item}", None),
        ("GET", f"/v1/dashboard/batches/{batch}", None),
        ("GET", f"/v1/dashboard/adapters/{tenant.namespace}/{tenant.coder}?tag={PLANTED}", None),
        ("GET", "/v1/models", None),
    ]
    statuses = [client.request(method, path, json=body, headers=headers).status_code for method, path, body in asked]
    for key in (PLANTED, f"Bearer {PLANTED}-key-that-nobody-has"):
        statuses.append(client.get("/v1/models", headers={"Authorization": key, "X-API-Key": PLANTED}).status_code)
    statuses.append(client.post("/v1/dashboard/sign-in", data={"key": PLANTED}).status_code)
    statuses.append(client.post("/v1/feedback", content=f"{{{PLANTED}".encode(), headers=headers).status_code)
    return statuses


def private(world: TwoTenants) -> set[str]:
    told = {PLANTED, world.red.key, world.red.coder_key, world.blue.key}
    for tenant in (world.red, world.blue):
        for adapter in (tenant.coder, tenant.second):
            told |= set(tenant.texts(adapter))
    return told | {world.red.said("answer", "anything")}


def test_nothing_private_is_logged(tmp_path: Path, lines: Lines) -> None:
    with two_tenants(tmp_path) as world, httpx.Client(base_url=world.url, timeout=30) as client:
        _misplace_keys(world)
        assert 200 in use_everything(client, world.red)
        # The same while Kubernetes refuses to take samples and jobs, vLLM is broken, and then the database too.
        world.small.refuse = lambda method, path: refusal(500, PLANTED) if method != "GET" else None
        world.red.server.script.status, world.red.server.script.error = 500, PLANTED
        use_everything(client, world.red)
        (tmp_path / "gateway.db").write_bytes(b"broken" * 1000)
        broken = use_everything(client, world.red)
        assert max(broken) >= 500
        world.small.refuse = lambda method, path: None
    found = {secret: line for secret in private(world) for line in lines.lines if secret in line}
    assert found == {}
    assert any("claas-gateway-keys" in line for line in lines.lines), "nothing was logged at all"


def _misplace_keys(world: TwoTenants) -> None:
    """Keys that can't be used, so that the log names their entries."""
    entries = {"app": world.red.key, "short": PLANTED[:9], "lines": f"{PLANTED}\nand-another-key"}
    data: dict[str, JsonValue] = {name: base64.b64encode(value.encode()).decode() for name, value in entries.items()}
    world.small.put(SECRETS, world.red.namespace, {"metadata": {"name": "claas-gateway-keys"}, "data": data})
