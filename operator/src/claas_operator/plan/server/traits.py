"""Settings of a vLLM server: reported by its companion, or else read from its pod's template."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

from claas_kube.objects.pods import Container, PodSpec
from claas_operator.plan.server.command import Invocation, invocations
from claas_operator.plan.server.environment import environment_of
from claas_operator.plan.server.shell_words import UNKNOWN

SLEEP_FLAG = "--enable-sleep-mode"
EXPORT_FLAG = "--worker-extension-cls"
EXPORT_CLASS = "claas_vllm.WeightExport"
RUNTIME_LORA_VARIABLE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
DEV_MODE_VARIABLE = "VLLM_SERVER_DEV_MODE"
_GPU_VARIABLE = "NVIDIA_VISIBLE_DEVICES"
_NO_GPUS = ("", "void", "none")
_CPU_IMAGE = re.compile(r"(.*[^a-z])?cpu([^a-z].*)?")
_DEFAULT_LORA_RANK = 16
_DEFAULT_LORAS = 1

T = TypeVar("T")


@dataclass(frozen=True)
class ServerTraits:
    """The relevant settings of a vLLM server. None: unknown."""

    sleep_mode: bool | None = None
    exports_weights: bool | None = None
    on_gpu: bool | None = None
    """False only if it certainly runs on the CPU."""
    lora_enabled: bool | None = None
    max_lora_rank: int | None = None
    max_loras: int | None = None
    lora_modules: tuple[str, ...] | None = None
    """The only modules that adapters are applied to; empty: all."""
    loads_adapters: bool | None = None
    """Whether adapters can be loaded while it runs."""
    can_pause: bool | None = None
    """Whether the routes for pausing are open."""
    served_model_names: tuple[str, ...] | None = None
    log_stats: bool | None = None
    """Whether `/metrics` counts tokens."""
    tls: bool | None = None

    def or_else(self, other: ServerTraits) -> ServerTraits:
        """These settings, with unknown ones filled in from another source."""
        names = [each.name for each in fields(self)]
        return ServerTraits(
            **{name: mine if (mine := getattr(self, name)) is not None else getattr(other, name) for name in names}
        )


def agreed(several: Iterable[ServerTraits]) -> ServerTraits:
    """The settings on which several servers agree; the others are unknown."""
    found = list(several)
    return ServerTraits(
        **{each.name: _same(getattr(traits, each.name) for traits in found) for each in fields(ServerTraits)}
    )


def traits_of(pod: PodSpec, container_name: str | None, namespace: str | None = None) -> ServerTraits:
    """The settings visible in the server's pod template."""
    container = pod.container(container_name)
    if container is None:
        return ServerTraits()
    environment = environment_of(container, namespace=namespace)
    starts = invocations(container, environment)
    on_gpu = True if _sees_gpu(pod, container, environment.values) else None
    if on_gpu is None and _without_gpu(container, environment.values, starts):
        on_gpu = False
    told = agreed(_told(start) for start in starts) if starts else ServerTraits()
    return ServerTraits(on_gpu=on_gpu).or_else(told)


def _told(start: Invocation) -> ServerTraits:
    """The settings in one command line."""
    extension = start.value_of(EXPORT_FLAG)
    others = start.whole and start.seen
    """Whether options that are not set have vLLM's defaults; an image's entry point may set more."""
    off = start.switched_on("--disable-log-stats")
    names = start.values_of("--served-model-name")
    return ServerTraits(
        sleep_mode=start.switched_on(SLEEP_FLAG),
        exports_weights=extension == EXPORT_CLASS if extension is not None or start.whole else None,
        lora_enabled=_sure(start.switched_on("--enable-lora"), others),
        max_lora_rank=_number(start, "--max-lora-rank", _DEFAULT_LORA_RANK if others else None),
        max_loras=_number(start, "--max-loras", _DEFAULT_LORAS if others else None),
        lora_modules=_modules(start, others),
        loads_adapters=_variable(start.environment, RUNTIME_LORA_VARIABLE),
        can_pause=_variable(start.environment, DEV_MODE_VARIABLE),
        served_model_names=names if names and not any(UNKNOWN in name for name in names) else None,
        log_stats=None if off is None else _sure(not off, others or off),
        tls=_sure(any(name == "--ssl-certfile" for name, _ in start.options()), others),
    )


def _sure(value: bool | None, whole: bool) -> bool | None:
    """A switch; it is known to be off only if all arguments are known."""
    return value if value or whole else None


def _number(start: Invocation, option: str, default: int | None) -> int | None:
    text = start.value_of(option)
    if text is None:
        return default if all(name != option for name, _ in start.options()) else None
    return int(text) if text.isdecimal() else None


def _modules(start: Invocation, others: bool) -> tuple[str, ...] | None:
    found = start.values_of("--lora-target-modules")
    return None if any(UNKNOWN in name for name in found) else found or (() if others else None)


def _variable(environment: Mapping[str, str], name: str) -> bool | None:
    """A boolean variable; if it is not set here, the image may set it."""
    value = environment.get(name)
    return None if value is None or UNKNOWN in value else value.strip().lower() in ("1", "true")


def _same(values: Iterable[T]) -> T | None:
    found = list(values)
    return found[0] if found and all(value == found[0] for value in found) else None


def _sees_gpu(pod: PodSpec, container: Container, environment: Mapping[str, str]) -> bool:
    """Whether the container may see a GPU: by a device, a claim, or a runtime class with or without its variable."""
    resources = container.resources
    visible = environment.get(_GPU_VARIABLE, "")
    return (
        asks_for_gpu({**resources.requests, **resources.limits})
        or bool(resources.claims or pod.resource_claims)
        or pod.runtime_class_name is not None
        or (visible not in _NO_GPUS and UNKNOWN not in visible)
    )


def _without_gpu(container: Container, environment: Mapping[str, str], starts: tuple[Invocation, ...]) -> bool:
    """Whether the container shows that vLLM runs on the CPU. A missing GPU request does not, because there are
    several ways to a GPU."""
    says_cpu: Callable[[Invocation], bool] = lambda start: start.value_of("--device") == "cpu"  # noqa: E731
    return (
        environment.get(_GPU_VARIABLE, "all") in _NO_GPUS
        or environment.get("VLLM_TARGET_DEVICE") == "cpu"
        or any(name.startswith("VLLM_CPU_") for name in environment)
        or (bool(starts) and all(says_cpu(start) for start in starts))
        or _CPU_IMAGE.fullmatch(container.image.rpartition("/")[2]) is not None
    )


def asks_for_gpu(resources: Mapping[str, str | int]) -> bool:
    """Whether one of the resources is a GPU or a slice of one: `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`,
    `gpu.intel.com/i915`, ..."""
    devices = [name.lower() for name, count in resources.items() if "/" in name and str(count) != "0"]
    return any("gpu" in device or device.partition("/")[2].startswith("mig-") for device in devices)
