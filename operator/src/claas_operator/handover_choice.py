"""Which hand-over a step uses: what the adapter's spec says, or by `Auto` what the Deployment's own flags allow."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from claas_crds.lora_adapter import HandoverKind
from claas_operator.core import AdapterObject, Container, Deployment, PodSpec

SLEEP_FLAG = "--enable-sleep-mode"
EXPORT_FLAG = "--worker-extension-cls"
EXPORT_CLASS = "claas_vllm.WeightExport"
_GPU_VARIABLE = "NVIDIA_VISIBLE_DEVICES"
_NO_GPUS = ("", "void", "none")


@dataclass(frozen=True)
class HandoverChoice:
    """The hand-over, never Auto, and why it is this one. `kind` None: nothing would do, and `message` says what to
    change; no step may be taken."""

    kind: HandoverKind | None
    message: str


@dataclass(frozen=True)
class ServerTraits:
    """What a Deployment's pod template says of its vLLM server."""

    sleep_mode: bool
    exports_weights: bool
    on_gpu: bool


def choose_handover(adapter: AdapterObject, deployment: Deployment | None) -> HandoverChoice:
    """The hand-over of the adapter's next step."""
    serving = adapter.spec.serving
    if deployment is None:
        if serving.handover is HandoverKind.AUTO:
            return HandoverChoice(None, f"there is no Deployment {serving.deployment_ref.name} to choose by")
        return HandoverChoice(serving.handover, "spec.serving.handover says so")
    pod = deployment.spec.template.spec
    server = traits_of(pod, serving.container)
    if serving.handover is HandoverKind.AUTO:
        return by_traits(server, trainer_has_gpu=_has_own_gpu(adapter, pod))
    if serving.handover is HandoverKind.SHARE and server.on_gpu and server.sleep_mode:
        return HandoverChoice(
            None,
            f"spec.serving.handover is Share, and vLLM runs with {SLEEP_FLAG}: memory of its sleep mode can't be"
            f" shared; start vLLM with {EXPORT_FLAG} {EXPORT_CLASS} instead of that flag, or choose Sleep",
        )
    return HandoverChoice(serving.handover, "spec.serving.handover says so")


def by_traits(server: ServerTraits, *, trainer_has_gpu: bool) -> HandoverChoice:
    """What Auto chooses. A server without sleep mode is never asked to sleep."""
    if server.sleep_mode:
        # Before sharing: memory that the sleep mode's allocator made can't be exported.
        also = f"; {EXPORT_FLAG} has no effect beside it" if server.exports_weights else ""
        return HandoverChoice(HandoverKind.SLEEP, f"vLLM runs with {SLEEP_FLAG}{also}")
    if server.exports_weights:
        return HandoverChoice(HandoverKind.SHARE, f"vLLM runs with {EXPORT_FLAG} {EXPORT_CLASS}")
    if trainer_has_gpu:
        return HandoverChoice(HandoverKind.NONE, "the trainer has a GPU of its own")
    if not server.on_gpu:
        return HandoverChoice(HandoverKind.SHARE, "vLLM runs on the CPU: a step beside it maps the model's files")
    return HandoverChoice(
        None,
        f"vLLM runs on a GPU and can't make room for a step: start it with {SLEEP_FLAG} (serving pauses) or with"
        f" {EXPORT_FLAG} {EXPORT_CLASS} (it goes on), or give spec.trainer a GPU of its own; where flags stand in a"
        " file or an image, say in spec.serving.handover which it is",
    )


def traits_of(pod: PodSpec, container_name: str | None) -> ServerTraits:
    """What can be seen of the server in its pod's template."""
    container = pod.container(container_name)
    words = _words(container)
    return ServerTraits(
        sleep_mode=_switched_on(words, SLEEP_FLAG),
        exports_weights=_value_of(words, EXPORT_FLAG) == EXPORT_CLASS,
        on_gpu=container is not None and _sees_gpu(pod, container),
    )


def _words(container: Container | None) -> list[str]:
    """The command line, word by word; that of a shell too, whose script is one argument."""
    if container is None:
        return []
    return [word for argument in (*container.command, *container.args) for word in _split(argument)]


def _split(argument: str) -> list[str]:
    try:
        return shlex.split(argument, comments=True)
    except ValueError:  # A quote that does not end: no script, or a broken one.
        return argument.split()


def _flag(word: str) -> str:
    """An option's name as vLLM reads it: with dashes for underscores, without its value."""
    return word.partition("=")[0].replace("_", "-")


def _switched_on(words: Iterable[str], flag: str) -> bool:
    """Whether a flag that has no value is given; the last one counts, as `--no-...` takes it back."""
    off = f"--no-{flag.removeprefix('--')}"
    given = [_flag(word) for word in words if _flag(word) in (flag, off)]
    return bool(given) and given[-1] == flag


def _value_of(words: list[str], flag: str) -> str | None:
    """The value of an option, as the next word or after `=`; the last one counts."""
    value = None
    for word, following in pairwise([*words, ""]):
        if _flag(word) == flag:
            value = word.partition("=")[2] if "=" in word else following
    return value


def _sees_gpu(pod: PodSpec, container: Container) -> bool:
    """Whether the container may see a GPU: by a device, a claim, or a runtime class with or without its variable."""
    resources = container.resources
    visible = next((each.value for each in container.env if each.name == _GPU_VARIABLE), "")
    return (
        asks_for_gpu((*resources.limits, *resources.requests))
        or bool(resources.claims or pod.resource_claims)
        or pod.runtime_class_name is not None
        or visible not in _NO_GPUS
    )


def asks_for_gpu(resources: Iterable[str]) -> bool:
    """Whether one of the resources is a GPU or a slice of one: `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`, ..."""
    devices = (name.partition("/")[2].lower() for name in resources if "/" in name)
    return any("gpu" in device or device.startswith("mig-") for device in devices)


def _has_own_gpu(adapter: AdapterObject, server: PodSpec) -> bool:
    """Whether trainers get a GPU that is not the server's: by a device, or by a claim that it does not name."""
    trainer = adapter.spec.trainer
    shared = {claim.resource_claim_name for claim in server.resource_claims}
    return asks_for_gpu((*trainer.resources.limits, *trainer.resources.requests)) or any(
        claim.resource_claim_name not in shared for claim in trainer.resource_claims
    )
