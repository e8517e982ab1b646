"""What an engine can't follow is known before any job, and each refusal names its setting."""

from __future__ import annotations

import json

import pytest

from claas_contract.engine_refusals import TINKER_TOP_K, engine_refusals
from claas_crds.v1alpha1.engine import EngineName, EngineSpec, TinkerEngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.lora_adapter import SPEC_RULES
from claas_crds.v1alpha1.serving import DeploymentReference, Serving, TinkerProxy
from claas_crds.v1alpha1.training import SupportKind, TeacherKind, TrainingConfig

TINKER, LOCAL = EngineSpec.of(EngineName.TINKER), EngineSpec.of(EngineName.LOCAL)
PROXY = Serving(tinker_proxy=TinkerProxy())
VLLM = Serving(deployment_ref=DeploymentReference(name="vllm"))


@pytest.mark.parametrize(
    ("training", "field"),
    [
        (TrainingConfig(), None),
        (TrainingConfig(teacher_top_k=TINKER_TOP_K), None),
        (TrainingConfig(support=SupportKind.TOP_K_RENORMALISED), None),
        (TrainingConfig(teacher_top_k=TINKER_TOP_K + 1), "training.teacher_top_k"),
        (TrainingConfig(support=SupportKind.FULL), "training.support"),
        (TrainingConfig(teacher=TeacherKind.EMA), "training.teacher"),
        (TrainingConfig(teacher=TeacherKind.TRUST_REGION), "training.teacher"),
    ],
)
def test_settings_of_a_step(training: TrainingConfig, field: str | None) -> None:
    refusals = engine_refusals(TINKER, training, LoraSpec(), PROXY)
    assert [said.split(" is ")[0] for said in refusals] == ([field] if field else [])
    assert engine_refusals(LOCAL, training, LoraSpec(), VLLM) == []


@pytest.mark.parametrize(
    ("lora", "field"),
    [
        (LoraSpec(rank=8), None),
        (LoraSpec(alpha=32), "spec.lora.alpha"),
        (LoraSpec(target_modules=["q_proj"]), "spec.lora.targetModules"),
    ],
)
def test_the_adapters_shape(lora: LoraSpec, field: str | None) -> None:
    refusals = engine_refusals(TINKER, TrainingConfig(), lora)
    assert [said.split(" is ")[0] for said in refusals] == ([field] if field else [])


@pytest.mark.parametrize(
    ("engine", "serving", "field"),
    [
        (TINKER, PROXY, None),
        (TINKER, None, None),
        (TINKER, VLLM, "spec.engine.tinker.export"),
        (EngineSpec(tinker=TinkerEngineSpec(export=True)), VLLM, None),
        (LOCAL, VLLM, None),
        (LOCAL, PROXY, "spec.serving.tinkerProxy"),
    ],
)
def test_engine_and_serving_must_go_together(engine: EngineSpec, serving: Serving | None, field: str | None) -> None:
    refusals = engine_refusals(engine, TrainingConfig(), LoraSpec(), serving)
    assert len(refusals) == (field is not None)
    assert all(said.startswith(field or "") for said in refusals)


def test_all_refusals_are_told_at_once() -> None:
    training = TrainingConfig(teacher=TeacherKind.EMA, support=SupportKind.FULL, teacher_top_k=100)
    lora = LoraSpec(alpha=16, target_modules="all-linear")
    assert len(engine_refusals(TINKER, training, lora, VLLM)) == 6


def test_admission_knows_the_same_bounds() -> None:
    """CEL rules stand in the data model, which knows no engine."""
    rules = json.dumps(SPEC_RULES)
    assert f"teacher_top_k <= {TINKER_TOP_K}" in rules
    assert f"lora.alpha == {LoraSpec().alpha}" in rules
