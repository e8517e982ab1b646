"""Requests to vLLM servers and trainers: read their state, wake, load and unload."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
from pydantic import ValidationError

from claas_contract.places import PROGRESS_PATH, PROGRESS_PORT
from claas_contract.progress import Progress
from claas_crds.v1alpha1.serving import Probe
from claas_operator.errors import NotAppliedError, ServerError
from claas_operator.plan.server.traits import EXPORT_CLASS, ServerTraits
from claas_operator.plan.world import ServerState
from claas_vllm_client import (
    AdapterNotApplied,
    CompanionStatus,
    ProbeSpec,
    Refused,
    RouteMissing,
    ServerSettings,
    Tls,
    Verification,
    VllmClient,
    VllmError,
    ensure_awake,
    loaded_version,
    put_in_service,
    take_out_of_service,
    verify_in_service,
    versions_of,
)

ASK_SECONDS = 4.0
TELL_SECONDS = 30.0
SERVE_SECONDS = 120.0
PROGRESS_SECONDS = 1.5
_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that never use TLS: httpx's own default reads the machine's certificates, which takes tens of
milliseconds each time."""


@dataclass(frozen=True)
class Credentials:
    """Credentials for a server: the control token and vLLM's API key, and how its certificate is verified."""

    control_token: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    tls: Tls | None = None


@asynccontextmanager
async def _client(url: str, credentials: Credentials, timeout_seconds: float) -> AsyncIterator[VllmClient]:
    async with VllmClient(
        url,
        control_token=credentials.control_token,
        api_key=credentials.api_key,
        tls=credentials.tls,
        timeout_seconds=timeout_seconds,
    ) as client:
        yield client


async def ask_state(url: str, served_name: str | None, credentials: Credentials) -> ServerState:
    """State of a server; `served_name` None asks only whether it sleeps. Never raises."""
    try:
        async with asyncio.timeout(ASK_SECONDS), _client(url, credentials, ASK_SECONDS) as client:
            asleep = await _is_asleep(client)
            if served_name is None:
                return ServerState(reachable=True, asleep=asleep)
            status = await client.companion_status()
            root_path = _needed_root_path(status)
            client.below(root_path)
            loaded = await loaded_version(client, served_name)
            models = await client.models()
            alias = status.alias(served_name) if status else None
            return ServerState(
                reachable=True,
                asleep=asleep,
                loaded_version=loaded.version if loaded else None,
                loaded_path=loaded.path if loaded else None,
                root_path=root_path,
                remnants=any(name != (alias.target if alias else None) for name in versions_of(models, served_name)),
                verified=alias is None or alias.verified,
                companion=status is not None,
                companion_supported=status is None or status.vllm_supported,
                persisted=status is None or status.persisted,
                base_models=tuple(model.id for model in models if model.parent is None),
                traits=_traits(status.settings) if status is not None and status.settings is not None else None,
            )
    except Refused as error:
        return ServerState(reachable=True, refused=True, error=str(error))
    except VllmError as error:
        return ServerState(reachable=False, error=str(error))
    except TimeoutError:
        return ServerState(reachable=False, error=f"{url} did not answer within {ASK_SECONDS:g} s")


def _needed_root_path(status: CompanionStatus | None) -> str:
    """The server's --root-path if requests need it. vLLM also accepts paths without it, except those that begin with
    it."""
    given = (status.settings.root_path or "") if status is not None and status.settings is not None else ""
    return given if "/v1/models".startswith(f"{given}/") else ""


def _traits(said: ServerSettings) -> ServerTraits:
    """State of a server."""
    return ServerTraits(
        sleep_mode=said.sleep_mode,
        exports_weights=None if said.worker_extension is None else said.worker_extension == EXPORT_CLASS,
        on_gpu=None if said.device_type is None else said.device_type != "cpu",
        lora_enabled=said.lora.enabled if said.lora else None,
        max_lora_rank=said.lora.max_rank if said.lora else None,
        max_loras=said.lora.max_loras if said.lora else None,
        lora_modules=(said.lora.target_modules or ()) if said.lora else None,
        loads_adapters=said.loads_adapters,
        can_pause=said.can_pause,
        served_model_names=said.served_model_names or None,
        log_stats=said.log_stats,
        tls=said.tls,
    )


async def _is_asleep(client: VllmClient) -> bool:
    try:
        return await client.is_sleeping()
    except RouteMissing:
        return False


async def wake(url: str, credentials: Credentials) -> None:
    """Wake a server; raises ServerError."""
    try:
        async with _client(url, credentials, TELL_SECONDS) as client:
            await ensure_awake(client, timeout_seconds=TELL_SECONDS)
    except VllmError as error:
        raise ServerError(str(error)) from error


async def serve(url: str, credentials: Credentials, served_name: str, version: int, path: str, probe: Probe) -> bool:
    """Make a server serve a version under `served_name`; True if that changed anything. Raises ServerError."""
    try:
        async with asyncio.timeout(SERVE_SECONDS), _client(url, credentials, TELL_SECONDS) as client:
            outcome = await put_in_service(
                client,
                served_name=served_name,
                version=version,
                path=path,
                probe=ProbeSpec(probe.prompt, probe.max_tokens),
            )
            return outcome.changed
    except AdapterNotApplied as error:
        raise NotAppliedError(str(error)) from error
    except VllmError as error:
        raise ServerError(str(error)) from error
    except TimeoutError:
        raise ServerError(f"{url} did not put version {version} into service within {SERVE_SECONDS:g} s") from None


async def verify(url: str, credentials: Credentials, served_name: str, probe: Probe) -> bool:
    """Verify that the version in service is applied; True if it had to be loaded again. Raises ServerError."""
    try:
        async with asyncio.timeout(SERVE_SECONDS), _client(url, credentials, TELL_SECONDS) as client:
            spec = ProbeSpec(probe.prompt, probe.max_tokens)
            return await verify_in_service(client, served_name=served_name, probe=spec) is Verification.RELOADED
    except AdapterNotApplied as error:
        raise NotAppliedError(str(error)) from error
    except VllmError as error:
        raise ServerError(str(error)) from error
    except TimeoutError:
        raise ServerError(f"{url} did not answer the probe within {SERVE_SECONDS:g} s") from None


async def forget(url: str, credentials: Credentials, served_name: str) -> None:
    """Make a server stop serving the adapter; raises ServerError."""
    try:
        async with _client(url, credentials, TELL_SECONDS) as client:
            await take_out_of_service(client, served_name=served_name)
    except VllmError as error:
        raise ServerError(str(error)) from error


async def ask_progress(pod_address: str) -> Progress | None:
    """Progress of a trainer; None if it does not answer."""
    host = f"[{pod_address}]" if ":" in pod_address else pod_address
    try:
        async with httpx.AsyncClient(timeout=PROGRESS_SECONDS, verify=_NO_CERTIFICATES, trust_env=False) as client:
            answer = await client.get(f"http://{host}:{PROGRESS_PORT}{PROGRESS_PATH}")
            return Progress.model_validate_json(answer.content)
    except (httpx.HTTPError, ValidationError):
        return None
