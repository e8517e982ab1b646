"""Settings that an engine can't follow, as far as they can be known without asking anybody."""

from __future__ import annotations

from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.serving import Serving
from claas_crds.v1alpha1.training import SupportKind, TeacherKind, TrainingConfig

TINKER_TOP_K = 20
"""Most likely tokens that the Tinker service tells at each place of a prompt; also the default of `teacher_top_k` for
this engine."""
_ALPHA = LoraSpec().alpha


def engine_refusals(
    spec: EngineSpec, training: TrainingConfig, lora: LoraSpec, serving: Serving | None = None
) -> list[str]:
    """What the engine can't follow, a sentence for each setting that names it; empty if there is none.

    `training`: the settings of the adapter, or those of a job with the adapter's as defaults.
    `serving`: None where it does not matter, as in the trainer.
    """
    refusals = [] if serving is None else _serving_refusals(spec.name, serving)
    tinker = spec.tinker
    if tinker is None:
        return refusals
    refusals = [*refusals, *_training_refusals(training), *_lora_refusals(lora)]
    if serving is not None and serving.deployment_ref is not None and not tinker.export:
        refusals.append(
            "spec.engine.tinker.export is false, and spec.serving.deploymentRef names a vLLM, which needs the"
            " adapter's weights: set export, or use serving.tinkerProxy"
        )
    return refusals


def _serving_refusals(engine: EngineName, serving: Serving) -> list[str]:
    """Servers that belong to another engine."""
    if serving.tinker_proxy is not None and engine is not EngineName.TINKER:
        return [
            "spec.serving.tinkerProxy answers by checkpoints of the Tinker service, and spec.engine is"
            f" {engine.value}: use serving.deploymentRef, or the engine {EngineName.TINKER.value}"
        ]
    if serving.modal_app is not None and engine is not EngineName.MODAL:
        return [
            "spec.serving.modalApp reads versions from the Volume of the Modal engine, and spec.engine is"
            f" {engine.value}: use serving.deploymentRef, or the engine {EngineName.MODAL.value}"
        ]
    return []


def _training_refusals(training: TrainingConfig) -> list[str]:
    refusals = []
    if training.teacher is not TeacherKind.FROZEN:
        refusals.append(
            f"training.teacher is {training.teacher.value}, and the Tinker service offers only the base model as"
            f" teacher: use {TeacherKind.FROZEN.value}"
        )
    if training.support is SupportKind.FULL:
        refusals.append(
            f"training.support is {training.support.value}, and the Tinker service does not tell the whole"
            f" vocabulary's probabilities: use {SupportKind.TOP_K_TAIL.value} or"
            f" {SupportKind.TOP_K_RENORMALISED.value}"
        )
    if (training.teacher_top_k or 0) > TINKER_TOP_K:
        refusals.append(
            f"training.teacher_top_k is {training.teacher_top_k}, and the Tinker service tells {TINKER_TOP_K} tokens"
            f" at most: use {TINKER_TOP_K} or fewer, or leave it out"
        )
    return refusals


def _lora_refusals(lora: LoraSpec) -> list[str]:
    refusals = []
    if lora.alpha != _ALPHA:
        refusals.append(f"spec.lora.alpha is {lora.alpha}, and the Tinker service chooses alpha itself: leave it out")
    if lora.target_modules is not None:
        refusals.append(
            "spec.lora.targetModules is set, and the Tinker service chooses the layers itself: leave it out"
        )
    return refusals
