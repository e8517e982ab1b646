"""The hand-over of a step: none for an engine that needs nothing of serving, else the one in the adapter's spec, or
with `Auto` one that the Deployment's servers allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from claas_contract.engine import EngineNeeds, ServingNeed
from claas_crds.v1alpha1.serving import HandoverKind
from claas_kube.objects.pods import PodSpec
from claas_kube.objects.resources import AdapterObject
from claas_kube.objects.workloads import Deployment
from claas_operator.plan.server.traits import (
    DEV_MODE_VARIABLE,
    EXPORT_CLASS,
    EXPORT_FLAG,
    SLEEP_FLAG,
    ServerTraits,
    agreed,
    asks_for_gpu,
    traits_of,
)


@dataclass(frozen=True)
class HandoverChoice:
    """The hand-over, never Auto, and the reason. `kind` None: none is possible, no step may be taken, and `message`
    says what to change."""

    kind: HandoverKind | None
    message: str


def choose_handover(
    adapter: AdapterObject, needs: EngineNeeds, deployment: Deployment | None, reported: Sequence[ServerTraits] = ()
) -> HandoverChoice:
    """The hand-over of the adapter's next step by an engine with these needs. `reported` has the settings that
    servers report; settings that they do not report are read from the Deployment."""
    if needs.serving is ServingNeed.NOTHING:
        return HandoverChoice(HandoverKind.NONE, "the engine computes elsewhere and needs nothing of vLLM")
    serving = adapter.spec.serving
    if deployment is None:
        if serving.handover is HandoverKind.AUTO:
            return HandoverChoice(None, f"there is no Deployment {adapter.deployment_name} to choose by")
        return HandoverChoice(serving.handover, "spec.serving.handover says so")
    pod = deployment.spec.template.spec
    if serving.handover is HandoverKind.AUTO and _differ(reported):
        return HandoverChoice(
            None,
            f"pods of Deployment {adapter.deployment_name} run with different {SLEEP_FLAG} or {EXPORT_FLAG}: wait"
            " until its rollout has ended, or say in spec.serving.handover which hand-over it is",
        )
    server = server_of(adapter, deployment, reported)
    return _checked(_choice(adapter, pod, server), server, serving.max_slowdown)


def server_of(
    adapter: AdapterObject, deployment: Deployment | None, reported: Sequence[ServerTraits]
) -> ServerTraits:
    """Settings of the adapter's servers: those that they report and agree on, and for others those in the
    Deployment's template. An inference proxy's template tells nothing."""
    said = agreed(reported)
    if deployment is None or adapter.spec.serving.tinker_proxy is not None:
        return said
    pod = deployment.spec.template.spec
    return said.or_else(traits_of(pod, adapter.spec.serving.container, adapter.metadata.namespace))


def _differ(reported: Sequence[ServerTraits]) -> bool:
    """Whether the servers report different values of deciding settings."""
    return len({(each.sleep_mode, each.exports_weights) for each in reported}) > 1


def _choice(adapter: AdapterObject, pod: PodSpec, server: ServerTraits) -> HandoverChoice:
    serving = adapter.spec.serving
    if serving.handover is HandoverKind.AUTO:
        return by_traits(server, trainer_has_gpu=_has_own_gpu(adapter, pod))
    if serving.handover is HandoverKind.SHARE and server.on_gpu and server.sleep_mode:
        return HandoverChoice(
            None,
            f"spec.serving.handover is Share, and vLLM runs with {SLEEP_FLAG}: memory of its sleep mode can't be"
            f" shared; start vLLM with {EXPORT_FLAG} {EXPORT_CLASS} instead of that flag, or choose Sleep",
        )
    return HandoverChoice(serving.handover, "spec.serving.handover says so")


def _checked(choice: HandoverChoice, server: ServerTraits, max_slowdown: int) -> HandoverChoice:
    """The choice, unless the server would certainly refuse it; with a warning about settings that can't be
    enforced."""
    exports = choice.kind is HandoverKind.SHARE and server.on_gpu
    if server.can_pause is False and (exports or choice.kind is HandoverKind.SLEEP):
        route = "exported" if exports else "paused"
        return HandoverChoice(
            None,
            f"the hand-over is {choice.kind} ({choice.message}), and vLLM can't be {route} without its control"
            f" routes: set {DEV_MODE_VARIABLE}=1 in its container",
        )
    if choice.kind is not HandoverKind.SHARE or server.log_stats is not False:
        return choice
    return HandoverChoice(
        choice.kind,
        f"{choice.message}; vLLM runs with --disable-log-stats and counts no tokens, so spec.serving.maxSlowdown"
        f" ({max_slowdown} %) can't be kept: start it without that flag",
    )


def by_traits(server: ServerTraits, *, trainer_has_gpu: bool) -> HandoverChoice:
    """The choice of Auto. Never Sleep without sleep mode, and an unknown device is not assumed to be a CPU."""
    if server.sleep_mode:
        # Before Share, because memory from the sleep mode's allocator can't be exported.
        also = f"; {EXPORT_FLAG} has no effect beside it" if server.exports_weights else ""
        return HandoverChoice(HandoverKind.SLEEP, f"vLLM runs with {SLEEP_FLAG}{also}")
    if server.exports_weights:
        return HandoverChoice(HandoverKind.SHARE, f"vLLM runs with {EXPORT_FLAG} {EXPORT_CLASS}")
    if trainer_has_gpu:
        return HandoverChoice(HandoverKind.NONE, "the trainer has a GPU of its own")
    if server.on_gpu is False:
        return HandoverChoice(HandoverKind.SHARE, "vLLM runs on the CPU: a step beside it maps the model's files")
    by_hand = "add the companion, which tells it, or say in spec.serving.handover which hand-over it is"
    if server.sleep_mode is None or server.exports_weights is None:
        return HandoverChoice(
            None,
            f"the Deployment does not show whether vLLM runs with {SLEEP_FLAG} or {EXPORT_FLAG} {EXPORT_CLASS} (flags"
            f" may stand in an image, a file or a variable, or its pods differ): {by_hand}",
        )
    if server.on_gpu is None:
        return HandoverChoice(
            None,
            "the Deployment does not show whether vLLM runs on a GPU or on the CPU (it names no device, claim or"
            f" runtime class): {by_hand}; on a GPU vLLM needs {SLEEP_FLAG} or {EXPORT_FLAG} {EXPORT_CLASS}, unless"
            " spec.trainer has a GPU of its own",
        )
    return HandoverChoice(
        None,
        f"vLLM runs on a GPU and can't make room for a step: start it with {SLEEP_FLAG} (serving pauses) or with"
        f" {EXPORT_FLAG} {EXPORT_CLASS} (it goes on), or give spec.trainer a GPU of its own; where flags stand in a"
        " file or an image, say in spec.serving.handover which it is",
    )


def _has_own_gpu(adapter: AdapterObject, server: PodSpec) -> bool:
    """Whether trainers get a GPU of their own: by a device, or by a claim that the server does not name."""
    trainer = adapter.spec.trainer
    shared = {claim.resource_claim_name for claim in server.resource_claims}
    return asks_for_gpu({**trainer.resources.requests, **trainer.resources.limits}) or any(
        claim.resource_claim_name not in shared for claim in trainer.resource_claims
    )
