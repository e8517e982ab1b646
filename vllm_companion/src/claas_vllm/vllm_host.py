"""What the companion asks of the program that it runs in, and how vLLM answers."""

import os
from typing import Any, Protocol

from claas_vllm.engine_watch import watch_engine
from claas_vllm.gpus import visible_gpu_uuids
from claas_vllm.inner_server import has_sleep_mode
from claas_vllm.recording import record_generate
from claas_vllm.server_settings import server_settings
from claas_vllm.vllm_release import SUPPORTED_VLLM_VERSIONS, is_supported, vllm_version


class Host(Protocol):
    """A server with vLLM's routes for models, adapters and answers. `application`: that of the ASGI scope."""

    def open_paths(self) -> tuple[str, ...]:
        """Paths of its own that need no token."""

    def sleeps_at_start(self, application: object) -> bool:
        """Whether it has to sleep once before it accepts requests."""

    def restores_first(self) -> bool:
        """Whether served names are restored before it accepts requests; else it restores them itself, later."""

    def started(self, application: object) -> None:
        """Called when it is about to accept requests."""

    def records(self, application: object) -> bool:
        """Have answers recorded by `recording.current_recorder`; False if it can't."""

    def about(self, application: object) -> dict[str, Any]:
        """Its part of `/claas/status`: release, whether the companion fits it, and settings. May block."""


class VllmHost:
    """vLLM's API server."""

    def __init__(self) -> None:
        self._gpu_uuids: list[str] | None = None

    def open_paths(self) -> tuple[str, ...]:
        """None besides vLLM's own."""
        return ()

    def sleeps_at_start(self, application: object) -> bool:
        """With --enable-sleep-mode."""
        return has_sleep_mode(application)

    def restores_first(self) -> bool:
        """Yes: it loads from a volume, which is fast."""
        return True

    def started(self, application: object) -> None:
        """Watches the engine."""
        watch_engine(application, os.environ)

    def records(self, application: object) -> bool:
        """What the engine samples."""
        return record_generate(application)

    def about(self, application: object) -> dict[str, Any]:
        """Release, GPUs and settings."""
        if self._gpu_uuids is None:
            self._gpu_uuids = visible_gpu_uuids(os.environ)
        version = vllm_version()
        return {
            "vllm_version": version,
            "supported_vllm_versions": list(SUPPORTED_VLLM_VERSIONS),
            "vllm_supported": is_supported(version),
            "gpu_uuids": self._gpu_uuids,
            "settings": server_settings(application),
        }
