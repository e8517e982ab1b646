"""The proxy's settings, from the environment. The companion's own (CLAAS_TOKEN_FILE, CLAAS_ALIAS_DIR, ...) stand in
`claas_vllm.settings`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from claas_contract.places import TINKER_KEY_FILE
from claas_inference_proxy.errors import SettingsError


@dataclass(frozen=True)
class Settings:
    """How the proxy runs."""

    model: str
    """CLAAS_MODEL: the base model's folder with its tokenizer, or its repository on the hub."""
    revision: str | None
    """CLAAS_MODEL_REVISION: of the repository."""
    model_name: str
    """CLAAS_MODEL_NAME: the name that clients know the base model by."""
    base_model: str
    """CLAAS_TINKER_BASE_MODEL: the service's name of the base model; default CLAAS_MODEL_NAME."""
    key_file: Path
    """CLAAS_TINKER_KEY_FILE: the file with the service's API key."""
    base_url: str | None
    """CLAAS_TINKER_BASE_URL: the service's address, if not the SDK's own."""
    project: str | None
    """CLAAS_TINKER_PROJECT: the project that sessions belong to."""
    served_name: str
    """CLAAS_SERVED_NAME: the adapter's name for clients; its newest version is served from the start."""
    adapter_directory: Path
    """CLAAS_ADAPTER_DIRECTORY: the adapter's folder on the volume, the one with `versions`."""
    probe: str
    """CLAAS_PROBE_PROMPT: what a version must answer before the proxy is ready."""
    host: str
    """CLAAS_HOST: the address to listen on."""
    port: int
    """CLAAS_PORT: the port to listen on."""
    patience_seconds: float
    """CLAAS_SERVICE_PATIENCE_SECONDS: how long a request waits while the service fails or is full; clients had better
    try again."""
    request_timeout_seconds: float
    """CLAAS_REQUEST_TIMEOUT_SECONDS: the longest time that the service may take for an answer."""


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from environment variables. Raises SettingsError with what to set."""

    def text(name: str) -> str | None:
        return environment.get(name, "").strip() or None

    def needed(name: str, what: str) -> str:
        value = text(name)
        if value is None:
            raise SettingsError(f"{name} is not set: it must be {what}")
        return value

    model = needed("CLAAS_MODEL", "the base model's folder, or its repository on the hub")
    model_name = text("CLAAS_MODEL_NAME") or model
    served_name = needed("CLAAS_SERVED_NAME", "the adapter's name for clients")
    if served_name == model_name:
        raise SettingsError(f"CLAAS_SERVED_NAME is {served_name}, the base model's name: choose another one")
    return Settings(
        model=model,
        revision=text("CLAAS_MODEL_REVISION"),
        model_name=model_name,
        base_model=text("CLAAS_TINKER_BASE_MODEL") or model_name,
        key_file=Path(text("CLAAS_TINKER_KEY_FILE") or TINKER_KEY_FILE),
        base_url=text("CLAAS_TINKER_BASE_URL"),
        project=text("CLAAS_TINKER_PROJECT"),
        served_name=served_name,
        adapter_directory=Path(needed("CLAAS_ADAPTER_DIRECTORY", "the adapter's folder on the volume")),
        probe=environment.get("CLAAS_PROBE_PROMPT") or "Hello",
        host=text("CLAAS_HOST") or "0.0.0.0",
        port=int(_number(environment, "CLAAS_PORT", 8000, largest=65535)),
        patience_seconds=_number(environment, "CLAAS_SERVICE_PATIENCE_SECONDS", 30, largest=3600),
        request_timeout_seconds=_number(environment, "CLAAS_REQUEST_TIMEOUT_SECONDS", 600, largest=86400),
    )


def _number(environment: Mapping[str, str], name: str, default: int, *, largest: int) -> float:
    value = environment.get(name, "").strip()
    if not value:
        return default
    if not re.fullmatch(r"[0-9]{1,6}", value) or not 1 <= int(value) <= largest:
        raise SettingsError(f"{name} is {value!r}: it must be a whole number from 1 to {largest}")
    return int(value)
