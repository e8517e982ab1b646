"""The gateway as an application uses it: over HTTP, with the key of a namespace."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
from pydantic import BaseModel, JsonValue

from tests.stack.install import GATEWAY_DEPLOYMENT, SYSTEM_NAMESPACE, Stack
from tests.stack.serving import Serving

FEEDBACK_TIMEOUT_SECONDS = 180.0
"""Of clients of CLaaS."""


class Item(BaseModel):
    """What became of one item of feedback, as the gateway tells it."""

    id: str
    state: str
    version: int | None = None
    reason: str | None = None
    batch_id: str | None = None


class Given(BaseModel):
    """The answer to a request that brought feedback."""

    status: str
    request_id: str
    lora_id: str
    distill_result: dict[str, JsonValue] | None = None
    items: list[Item] = []


@dataclass(frozen=True)
class Gateway:
    """The gateway's address, and the API key of a namespace."""

    url: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        """What every request has."""
        return {"Authorization": f"Bearer {self.key}"}

    def client(self, timeout_seconds: float = 30.0) -> httpx.Client:
        """A client with the key."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=timeout_seconds, trust_env=False)

    def give_feedback(self, items: Sequence[Mapping[str, JsonValue]], *, idempotency_key: str | None = None) -> Given:
        """Give feedback and wait for its step; raises httpx.HTTPError."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        with self.client(FEEDBACK_TIMEOUT_SECONDS) as client:
            answer = client.post("/v1/feedback", json={"requests": [dict(each) for each in items]}, headers=headers)
        return Given.model_validate(answer.raise_for_status().json())

    def item(self, item_id: str) -> Item:
        """How far an item of feedback has come; raises httpx.HTTPError."""
        with self.client() as client:
            return Item.model_validate(client.get(f"/v1/feedback/{item_id}").raise_for_status().json())

    def learned_by(self, adapter: str, version: int) -> set[str]:
        """The ids of the items that a version learned from; raises httpx.HTTPError."""
        with self.client() as client:
            answer = client.get(f"/v1/versions/{adapter}/{version}/feedback").raise_for_status()
        return {Item.model_validate(each).id for each in answer.json()["items"]}

    def put_score(self, adapter: str, version: int, name: str, value: float) -> None:
        """Tell a score that was measured on a version; raises httpx.HTTPError."""
        with self.client() as client:
            client.put(f"/v1/versions/{adapter}/{version}/probes/{name}", json={"value": value}).raise_for_status()


def gateway(stack: Stack, serving: Serving) -> Gateway:
    """The gateway, with the key of a namespace."""
    address = ("get", "service", GATEWAY_DEPLOYMENT, "-n", SYSTEM_NAMESPACE, "-o", "jsonpath={.spec.clusterIP}")
    return Gateway(f"http://{stack.kubectl(*address).strip()}", serving.gateway_key)


def wait_until_it_answers(gateway: Gateway, timeout_seconds: float = 90.0) -> None:
    """Wait until it is there and knows the key, as it does once the namespace has an adapter; raises TimeoutError."""
    deadline = time.monotonic() + timeout_seconds
    said = ""
    while time.monotonic() < deadline:
        try:
            with gateway.client(5.0) as client:
                answer = client.get("/v1/models")
            if answer.status_code == httpx.codes.OK:
                return
            said = f"HTTP {answer.status_code}"
        except httpx.HTTPError as error:
            said = type(error).__name__
        time.sleep(0.25)
    raise TimeoutError(f"the gateway at {gateway.url} did not answer within {timeout_seconds:g} s: {said}")
