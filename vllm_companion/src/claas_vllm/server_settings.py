"""The settings of this vLLM server as vLLM parsed them, so that no flag has to be guessed from a command line."""

import json
from collections.abc import Iterable
from typing import Any

_LOAD_ROUTE = "/v1/load_lora_adapter"
_SLEEP_ROUTE = "/sleep"


def server_settings(application: object) -> dict[str, Any] | None:
    """The settings that operator and trainer need, from the state of vLLM's app; None before start-up. A setting that
    this vLLM release lacks or keeps elsewhere is None.
    """
    state = getattr(application, "state", None)
    args, config = getattr(state, "args", None), getattr(state, "vllm_config", None)
    if args is None or config is None:
        return None
    return {
        "served_model_names": _served_model_names(args, config),
        "device_type": _text(_get(config, "device_config", "device_type")),
        "sleep_mode": _flag(_get(config, "model_config", "enable_sleep_mode")),
        "worker_extension": _text(_get(config, "parallel_config", "worker_extension_cls")),
        "lora": _lora(config),
        "loads_adapters": _has_route(application, _LOAD_ROUTE),
        "can_pause": _has_route(application, _SLEEP_ROUTE),
        "log_stats": None if (off := _flag(_get(args, "disable_log_stats"))) is None else not off,
        "root_path": _text(_get(args, "root_path")),
        "tls": bool(_get(args, "ssl_certfile")) if hasattr(args, "ssl_certfile") else None,
        "chat": _chat(state),
    }


def _served_model_names(args: object, config: object) -> list[str]:
    names = (
        _get(args, "served_model_name") or _get(config, "model_config", "served_model_name") or _get(args, "model")
    )
    return [names] if isinstance(names, str) else _texts(names)


def _lora(config: object) -> dict[str, Any] | None:
    """The limits for adapters; `enabled` False without --enable-lora."""
    if not hasattr(config, "lora_config"):
        return None
    lora = config.lora_config
    return {
        "enabled": lora is not None,
        "max_rank": _number(_get(lora, "max_lora_rank")),
        "max_loras": _number(_get(lora, "max_loras")),
        "target_modules": _texts(_get(lora, "target_modules")) or None,
    }


def _chat(state: object) -> dict[str, Any] | None:
    """How messages are rendered to a prompt. `template` None: the tokenizer's default."""
    tokenization = getattr(state, "serving_tokenization", None)
    if tokenization is None or not hasattr(tokenization, "chat_template"):
        return None
    kwargs = getattr(tokenization, "default_chat_template_kwargs", None)
    return {
        "template": _text(tokenization.chat_template),
        "template_kwargs": _plain(kwargs) if isinstance(kwargs, dict) else {},
    }


def _plain(values: dict[Any, Any]) -> dict[str, Any]:
    """The arguments as JSON values; vLLM parsed them from JSON."""
    kept: dict[str, Any] = json.loads(json.dumps(values, default=lambda value: None))
    return kept


def _has_route(application: object, path: str) -> bool | None:
    routes = getattr(application, "routes", None)
    if not isinstance(routes, Iterable):
        return None
    return any(getattr(route, "path", None) == path for route in routes)


def _get(root: object, *names: str) -> object:
    for name in names:
        root = getattr(root, name, None)
    return root


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _texts(values: object) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, Iterable) else []


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None
