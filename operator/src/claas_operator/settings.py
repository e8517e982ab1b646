"""The operator's settings, read once from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from claas_contract.places import EXECUTION_MODE_VARIABLE
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.trainer_pod import Identity
from claas_operator.errors import SettingsError

DEFAULT_CONCURRENT_STEPS = 20


@dataclass(frozen=True)
class Settings:
    """The settings, which the chart provides."""

    trainer_image: str
    """Default image of trainer pods."""
    remote_trainer_image: str
    """Default image of trainer pods whose engine computes elsewhere."""
    proxy_image: str
    """Image of inference proxies."""
    trainer_image_pull_policy: str
    """imagePullPolicy of those images."""
    trainer_identity: Identity
    """Default user and groups of trainer pods."""
    engine: EngineName
    """Default engine."""
    modal_server_url: str | None
    """Address of Modal's API; None: the Modal client's own."""
    max_concurrent_steps: int
    """How many attempts of engines that compute elsewhere may run at once, in all namespaces."""
    watch_namespaces: tuple[str, ...]
    """Namespaces to watch; empty: all."""
    resync_seconds: float
    """Interval of passes over every object without an event."""
    default_ttl_seconds: int | None
    """The `ttlSecondsAfterFinished` of DistillJobs that set none; None: they stay."""
    pod_name: str
    """Name of the operator's pod: its identity as leader, which survives a restart of the container."""
    pod_namespace: str
    """Namespace of the leader's Lease."""
    health_port: int
    """Port of the leader's liveness endpoint."""
    metrics_port: int
    """Port of `/metrics`, which a standby serves too."""
    log_level: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings; raises SettingsError, which names the variable."""
        mode = environment.get(EXECUTION_MODE_VARIABLE, EngineName.LOCAL.value)
        try:
            engine = EngineName(mode)
        except ValueError:
            known = ", ".join(EngineName)
            raise SettingsError(
                f"{EXECUTION_MODE_VARIABLE}={mode!r}: no such engine; this release has: {known}"
            ) from None
        try:
            identity = Identity(environment.get("CLAAS_TRAINER_IDENTITY", Identity.FIXED.value))
        except ValueError:
            raise SettingsError(f"CLAAS_TRAINER_IDENTITY is none of: {', '.join(Identity)}") from None
        image = environment.get("CLAAS_TRAINER_IMAGE", "")
        if not image:
            raise SettingsError("CLAAS_TRAINER_IMAGE is not set: name the image of trainer pods")
        remote_image = environment.get("CLAAS_REMOTE_TRAINER_IMAGE", "") or image
        try:
            max_concurrent_steps = int(environment.get("CLAAS_MAX_CONCURRENT_STEPS", "") or DEFAULT_CONCURRENT_STEPS)
        except ValueError:
            raise SettingsError("CLAAS_MAX_CONCURRENT_STEPS is not a whole number") from None
        if max_concurrent_steps < 1:
            raise SettingsError("CLAAS_MAX_CONCURRENT_STEPS is less than 1")
        try:
            resync_seconds = float(environment.get("CLAAS_RESYNC_SECONDS", "30"))
        except ValueError:
            raise SettingsError("CLAAS_RESYNC_SECONDS is not a number of seconds") from None
        try:
            ttl = environment.get("CLAAS_DEFAULT_TTL_SECONDS", "")
            default_ttl_seconds = int(ttl) if ttl else None
        except ValueError:
            raise SettingsError("CLAAS_DEFAULT_TTL_SECONDS is not a whole number of seconds") from None
        if default_ttl_seconds is not None and default_ttl_seconds < 0:
            raise SettingsError("CLAAS_DEFAULT_TTL_SECONDS is negative")
        namespaces = environment.get("CLAAS_WATCH_NAMESPACES", "")
        return cls(
            trainer_image=image,
            remote_trainer_image=remote_image,
            proxy_image=environment.get("CLAAS_INFERENCE_PROXY_IMAGE", "") or remote_image,
            trainer_image_pull_policy=environment.get("CLAAS_TRAINER_IMAGE_PULL_POLICY", "IfNotPresent"),
            trainer_identity=identity,
            engine=engine,
            modal_server_url=environment.get("CLAAS_MODAL_SERVER_URL") or None,
            max_concurrent_steps=max_concurrent_steps,
            watch_namespaces=tuple(name.strip() for name in namespaces.split(",") if name.strip()),
            resync_seconds=resync_seconds,
            default_ttl_seconds=default_ttl_seconds,
            pod_name=environment.get("POD_NAME", "claas-operator"),
            pod_namespace=environment.get("POD_NAMESPACE", "default"),
            health_port=_port(environment, "CLAAS_HEALTH_PORT", "8081"),
            metrics_port=_port(environment, "CLAAS_METRICS_PORT", "8080"),
            log_level=environment.get("CLAAS_LOG_LEVEL", "INFO").upper(),
        )


def _port(environment: Mapping[str, str], variable: str, default: str) -> int:
    try:
        return int(environment.get(variable, default))
    except ValueError:
        raise SettingsError(f"{variable} is not a port number") from None
