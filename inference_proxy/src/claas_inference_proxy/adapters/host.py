"""What the companion asks of the proxy."""

from __future__ import annotations

from typing import Any

READY_ROUTE = "/ready"


class ProxyHost:
    """The proxy as the companion's host: it can't pause, and has no limits for adapters."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name

    def open_paths(self) -> tuple[str, ...]:
        """Readiness is asked by the kubelet."""
        return (READY_ROUTE,)

    def sleeps_at_start(self, application: object) -> bool:
        """It never sleeps."""
        return False

    def restores_first(self) -> bool:
        """No: the service may be slow to answer, and the proxy lives meanwhile; `Keeper` does it."""
        return False

    def started(self, application: object) -> None:
        """There is no engine in this process to watch."""

    def records(self, application: object) -> bool:
        """What the service samples is told to the recorder by `generation.routes`."""
        return True

    def about(self, application: object) -> dict[str, Any]:
        """As for a vLLM that runs elsewhere."""
        return {
            "vllm_version": None,
            "supported_vllm_versions": [],
            "vllm_supported": True,
            "gpu_uuids": [],
            "settings": {
                "served_model_names": [self._model_name],
                "device_type": "cpu",
                "sleep_mode": False,
                "worker_extension": "",
                "lora": {"enabled": True, "max_rank": None, "max_loras": None, "target_modules": None},
                "loads_adapters": True,
                "can_pause": False,
                "log_stats": True,
                "root_path": None,
                "tls": False,
                "chat": {"template": None, "template_kwargs": {}},
            },
        }
