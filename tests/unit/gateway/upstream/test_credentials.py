"""That credentials are read by name, renewed behind requests, and never replaced by weaker ones."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from claas_crds.v1alpha1.serving import DeploymentReference, Serving
from claas_crds.v1alpha1.tls import CertificatesKeyRef, ServingTls
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
from claas_gateway.directory.models import ServerGroup
from claas_gateway.upstream.credentials import RECENT_SECONDS, USABLE_SECONDS, KeptCredentials
from claas_kube.resources import SECRETS
from tests.builders.api_server import SmallApi, serving_api


def group(**serving: Any) -> ServerGroup:
    reference = DeploymentReference(name="vllm")
    return ServerGroup("team", "vllm", Serving(deployment_ref=reference, **serving))


def have(small: SmallApi, token: bytes) -> None:
    encoded = base64.b64encode(token).decode()
    small.put(SECRETS, "team", {"metadata": {"name": "control"}, "data": {"token": encoded}})


async def test_tokens_are_renewed_behind_requests_and_waited_for_only_when_they_are_old() -> None:
    small, now = SmallApi(), [0.0]
    have(small, b" first\n")
    async with serving_api(small) as api:
        kept = KeptCredentials(api, lambda: now[0])
        servers = group(control_token_secret_ref=SecretKeyRef(name="control"))
        assert {(await kept.of(servers)).control_token for _ in range(3)} == {"first"}
        assert sum(small.counted().values()) == 1
        have(small, b"second")
        now[0] = RECENT_SECONDS
        assert (await kept.of(servers)).control_token == "first"
        async with asyncio.timeout(5):
            while (await kept.of(servers)).control_token != "second":  # noqa: ASYNC110  (no event tells of it)
                await asyncio.sleep(0.005)
        have(small, b"third")
        now[0] += USABLE_SECONDS
        assert (await kept.of(servers)).control_token == "third"
        have(small, b"fourth")
        kept.forget(servers)
        assert (await kept.of(servers)).control_token == "fourth"


async def test_what_can_not_be_a_token_or_is_missing_is_none() -> None:
    small = SmallApi()
    have(small, b"two\nlines")
    async with serving_api(small) as api:
        kept = KeptCredentials(api)
        found = await kept.of(
            group(
                control_token_secret_ref=SecretKeyRef(name="control"), api_key_secret_ref=SecretKeyRef(name="missing")
            )
        )
        assert (found.control_token, found.api_key) == (None, None)
        plain = await kept.of(group())
        assert (plain.control_token, plain.tls) == (None, None)


async def test_a_missing_ca_means_that_nobody_is_trusted() -> None:
    async with serving_api(SmallApi()) as api:
        tls = ServingTls(ca_secret_ref=CertificatesKeyRef(name="ca"), server_name="vllm.team")
        found = await KeptCredentials(api).of(group(tls=tls))
        assert found.tls is not None
        assert found.tls.cert_store_stats()["x509_ca"] == 0
        assert found.server_name == "vllm.team"
