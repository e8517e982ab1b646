"""The gateway's settings, read once from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from claas_gateway.errors import SettingsError


@dataclass(frozen=True)
class Settings:
    """The settings, which the chart provides."""

    port: int
    """Port of the HTTP API."""
    metrics_port: int
    """Port of `/metrics`, which needs no key and is not for clients."""
    database_url: str
    """SQLAlchemy URL: `sqlite+aiosqlite:////data/gateway.db` or `postgresql+asyncpg://...`."""
    watch_namespaces: tuple[str, ...]
    """Namespaces to look after; empty: all."""
    keys_required: bool
    """Whether a request needs an API key."""
    keys_secret: str
    """Name of the Secret with a namespace's API keys; `<adapter>-<this name>` holds those of one adapter."""
    requests_per_minute: int
    """Requests that one key may make; 0: any number."""
    largest_body_bytes: int
    """Largest request body."""
    hold_seconds: float
    """How long a request waits for a server that is paused or not ready, below the 60 s after which proxies cut."""
    cold_start_seconds: float
    """How long a request waits for a vLLM outside the cluster, whose container may have to start."""
    feedback_wait_seconds: float
    """How long a feedback request waits for its step before it is answered with 202."""
    retention_days: int
    """Days after which rollouts, and texts of feedback that was dealt with, are deleted; 0: never."""
    replays_per_batch: int
    """How many items of a batch have their prompt asked again of the new version, for the dashboard; 0: none."""
    hide_thinking: bool
    """Whether thinking blocks and channel tags that a server leaves in the answer are taken out of it."""
    adapter_template: Path | None
    """File with the template of adapters that `/v1/lora/init` makes; None: it makes none."""
    sample_volumes: Path | None
    """Folder with one mounted claim for each name below it, for batches that a Secret can't hold; None: none."""
    pod_name: str
    pod_namespace: str
    log_level: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings; raises SettingsError, which names the variable."""
        read = _Reader(environment)
        keys = environment.get("CLAAS_GATEWAY_KEYS", "")
        if keys not in ("required", "off"):
            raise SettingsError(
                "CLAAS_GATEWAY_KEYS must be `required` or `off`: whether clients need an API key is for you to choose"
            )
        url = environment.get("CLAAS_GATEWAY_DATABASE_URL", "")
        if not url:
            raise SettingsError("CLAAS_GATEWAY_DATABASE_URL is not set: name the database by a SQLAlchemy URL")
        namespaces = environment.get("CLAAS_WATCH_NAMESPACES", "")
        template = environment.get("CLAAS_GATEWAY_ADAPTER_TEMPLATE", "")
        volumes = environment.get("CLAAS_GATEWAY_SAMPLE_VOLUMES", "")
        return cls(
            port=read.whole("CLAAS_GATEWAY_PORT", 8080),
            metrics_port=read.whole("CLAAS_METRICS_PORT", 8081),
            database_url=url,
            watch_namespaces=tuple(name.strip() for name in namespaces.split(",") if name.strip()),
            keys_required=keys == "required",
            keys_secret=environment.get("CLAAS_GATEWAY_KEYS_SECRET", "claas-gateway-keys"),
            requests_per_minute=read.whole("CLAAS_GATEWAY_REQUESTS_PER_MINUTE", 0),
            largest_body_bytes=read.whole("CLAAS_GATEWAY_LARGEST_BODY_BYTES", 16 * 1024 * 1024),
            hold_seconds=read.seconds("CLAAS_GATEWAY_HOLD_SECONDS", 55.0),
            cold_start_seconds=read.seconds("CLAAS_GATEWAY_COLD_START_SECONDS", 150.0),
            feedback_wait_seconds=read.seconds("CLAAS_GATEWAY_FEEDBACK_WAIT_SECONDS", 170.0),
            retention_days=read.whole("CLAAS_GATEWAY_RETENTION_DAYS", 30),
            replays_per_batch=read.whole("CLAAS_GATEWAY_REPLAYS_PER_BATCH", 4),
            hide_thinking=environment.get("CLAAS_GATEWAY_HIDE_THINKING", "true") != "false",
            adapter_template=Path(template) if template else None,
            sample_volumes=Path(volumes) if volumes else None,
            pod_name=environment.get("POD_NAME", "claas-gateway"),
            pod_namespace=environment.get("POD_NAMESPACE", "default"),
            log_level=environment.get("CLAAS_LOG_LEVEL", "INFO").upper(),
        )


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def whole(self, variable: str, default: int) -> int:
        """A whole number that is not negative."""
        try:
            value = int(self._environment.get(variable, str(default)))
        except ValueError:
            raise SettingsError(f"{variable} is not a whole number") from None
        if value < 0:
            raise SettingsError(f"{variable} is negative")
        return value

    def seconds(self, variable: str, default: float) -> float:
        """A number of seconds above 0."""
        try:
            value = float(self._environment.get(variable, str(default)))
        except ValueError:
            raise SettingsError(f"{variable} is not a number of seconds") from None
        if not 0 < value < 86_400:
            raise SettingsError(f"{variable} must be above 0 seconds and below a day")
        return value
