"""What the operator makes of a Secret: its text as a token, or what is wrong with which key."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import cast

import pytest
from pydantic import JsonValue

from claas_crds.v1alpha1.tls import ServingTls
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
from claas_kube.api import Api
from claas_kube.objects.meta import Manifest
from claas_kube.resources import Resource
from claas_operator.clients.credentials import CredentialReader
from claas_operator.clients.servers import Credentials
from claas_vllm_client import Tls

REFERENCE = SecretKeyRef(name="vllm-control", key="token")


class OneSecret:
    """An API server with one Secret at most."""

    def __init__(self, raw: bytes | None) -> None:
        self._raw = raw

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        if self._raw is None:
            return None
        times: list[JsonValue] = [{"time": "2026-05-04T12:00:00Z"}, {"time": "2026-05-04T11:00:00Z"}, {}]
        metadata: JsonValue = {
            "name": name, "creationTimestamp": "2026-05-04T10:00:00Z", "managedFields": times,
        }  # fmt: skip
        return {"metadata": metadata, "data": {"token": base64.b64encode(self._raw).decode()}}


def reader(raw: bytes | None) -> CredentialReader:
    return CredentialReader(cast(Api, OneSecret(raw)))


async def test_a_token_is_read_without_the_line_break_at_its_end_and_with_the_time_of_its_last_change() -> None:
    found = await reader(b"0123abcd\n").token("team", REFERENCE)
    assert found is not None
    assert (found.text, found.fault) == ("0123abcd", None)
    assert found.changed == datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x8f\xff\x00", "bytes that are not ASCII"),
        (b"Zm9v\nYmFy", "a line break inside"),
        ("schl\u00fcssel".encode(), "bytes that are not ASCII"),
        (b"", "is empty"),
    ],
)
async def test_a_secret_that_holds_no_token_is_told_by_name_and_key_and_opens_nothing(raw: bytes, said: str) -> None:
    found = await reader(raw).token("team", REFERENCE)
    assert found is not None
    assert found.text is None
    assert found.fault is not None
    assert found.fault.startswith("key token of Secret vllm-control ")
    assert said in found.fault
    assert await reader(raw).of("team", REFERENCE, REFERENCE) == Credentials(None, None)


async def test_a_secret_or_key_that_is_not_there_is_none() -> None:
    assert await reader(None).token("team", REFERENCE) is None
    assert await reader(b"x").token("team", SecretKeyRef(name="vllm-control", key="other")) is None


@pytest.mark.parametrize(
    ("tls", "raw", "ca"),
    [
        ({"caSecretRef": {"name": "tls", "key": "token"}}, b"PEM", "PEM"),
        ({"caSecretRef": {"name": "tls", "key": "token"}}, None, ""),
        ({"caSecretRef": {"name": "tls"}}, b"PEM", ""),
        ({}, b"PEM", None),
    ],
    ids=["there", "no Secret", "no such key", "not named"],
)
async def test_a_ca_that_is_named_and_not_there_is_none_to_trust_and_never_the_public_ones(
    tls: Manifest, raw: bytes | None, ca: str | None
) -> None:
    found = await reader(raw).of("team", None, None, ServingTls.model_validate({**tls, "serverName": "n"}))
    assert found.tls == Tls(ca, "n")


async def test_no_secret_is_in_what_is_printed_of_a_token_or_of_credentials() -> None:
    found = await reader(b"tml-secret").token("team", REFERENCE)
    assert found is not None
    assert found.text == "tml-secret"
    assert "tml-secret" not in f"{found!r} {Credentials('tml-secret', 'tml-secret')!r}"
