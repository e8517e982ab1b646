"""Training payloads keep the names, defaults and ranges that CLaaS users know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from claas_crds.v1alpha1.distill_job import DistillJob
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.lora_adapter import ClaimVolume, Storage
from claas_crds.v1alpha1.training import (
    DistillBatchItem,
    SupportKind,
    TeacherKind,
    TrainingConfig,
    TrainingOverrides,
)

SAMPLE: dict[str, JsonValue] = {"user_prompt": "q", "response": "a", "feedback": "f"}


def test_a_sample_has_the_known_names() -> None:
    assert set(DistillBatchItem.model_fields) == {
        "prompt",
        "response",
        "feedback",
        "response_logprobs",
        "prompt_token_ids",
        "response_token_ids",
        "user_prompt",
        "system_prompt",
        "messages",
        "correction",
        "version",
        "id",
    }


def test_training_has_the_known_defaults() -> None:
    known = {"learning_rate", "alpha", "is_clip", "max_grad_norm", "kl_reg_weight", "teacher_top_k"}
    assert TrainingConfig().model_dump(include=known) == {
        "learning_rate": 3e-5,
        "alpha": 0.5,
        "is_clip": 5.0,
        "max_grad_norm": 1.0,
        "kl_reg_weight": 0.0,
        "teacher_top_k": None,
    }


def test_the_teacher_is_the_base_model_and_a_step_that_goes_astray_is_not_published_unless_said_otherwise() -> None:
    known = {"teacher", "teacher_update_rate", "support", "max_kl"}
    assert TrainingConfig().model_dump(mode="json", include=known) == {
        "teacher": "frozen",
        "teacher_update_rate": 0.05,
        "support": "top_k_tail",
        "max_kl": 1.0,
    }


OUT_OF_RANGE = [
    ("learning_rate", 0.0),
    ("alpha", -0.1),
    ("alpha", 1.1),
    ("is_clip", 0.9),
    ("is_clip", 20.1),
    ("max_grad_norm", -1.0),
    ("kl_reg_weight", 1.1),
    ("teacher_top_k", 9),
    ("teacher_top_k", 101),
    ("weight_decay", -0.1),
    ("teacher", "base"),
    ("teacher_update_rate", 0),
    ("teacher_update_rate", 1.1),
    ("support", "top_k"),
    ("max_kl", -0.1),
    ("seed", -1),
]


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
def test_a_setting_out_of_range_is_refused_by_name_in_adapter_and_job(field: str, value: float | str) -> None:
    for model in (TrainingConfig, TrainingOverrides):
        with pytest.raises(ValidationError, match=field):
            model.model_validate({field: value})


def test_a_setting_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="learning_rat\n"):
        TrainingConfig.model_validate({"learning_rat": 1})


def test_overrides_know_every_setting() -> None:
    assert set(TrainingOverrides.model_fields) == set(TrainingConfig.model_fields)


@given(alpha=st.none() | st.floats(0, 1), seed=st.none() | st.integers(0, 1000))
def test_a_job_overrides_what_it_names_and_nothing_else(alpha: float | None, seed: int | None) -> None:
    defaults = TrainingConfig(alpha=0.25, seed=7, learning_rate=1e-3)
    merged = TrainingOverrides(alpha=alpha, seed=seed, teacher=TeacherKind.EMA).over(defaults)
    assert merged.alpha == (0.25 if alpha is None else alpha)
    assert merged.seed == (7 if seed is None else seed)
    assert merged.learning_rate == 1e-3
    assert (merged.teacher, merged.support) == (TeacherKind.EMA, SupportKind.TOP_K_TAIL)


def test_a_sample_written_by_hand_needs_question_and_answer_beside_the_feedback() -> None:
    assert DistillBatchItem.model_validate(SAMPLE).response_token_ids == []
    for field in ("user_prompt", "response"):
        with pytest.raises(ValidationError, match=field):
            DistillBatchItem.model_validate({name: text for name, text in SAMPLE.items() if name != field})


def test_an_error_in_a_sample_does_not_repeat_what_the_user_said() -> None:
    with pytest.raises(ValidationError) as error:
        DistillBatchItem.model_validate({**SAMPLE, "feedback": ["my private feedback"]})
    assert "feedback" in str(error.value)
    assert "my private feedback" not in str(error.value)


def test_an_error_in_a_job_does_not_repeat_what_the_user_said() -> None:
    sample: JsonValue = {**SAMPLE, "feedback": 5, "response": ["my private answer"]}
    document: JsonValue = {"spec": {"adapterRef": {"name": "a"}, "samples": {"inline": [sample]}}}
    with pytest.raises(ValidationError) as error:
        DistillJob.model_validate(document)
    assert "my private answer" not in str(error.value)


@pytest.mark.parametrize("wanted", ["all-linear", r".*\.(q|v)_proj", ["q_proj", "mlp.up_proj"], None])
def test_target_modules_are_text_a_list_or_left_out_and_reach_the_trainer_as_they_are(
    wanted: str | list[str] | None,
) -> None:
    spec = LoraSpec.model_validate({"rank": 8} if wanted is None else {"rank": 8, "targetModules": wanted})
    assert spec.target_modules == wanted
    assert LoraSpec.model_validate_json(spec.model_dump_json(exclude_none=True)) == spec


@pytest.mark.parametrize("path", ["qwen3-8b", "qwen3-8b/", "models/qwen3-8b/"])
def test_a_slash_at_a_folder_s_end_means_nothing(path: str) -> None:
    volume = ClaimVolume.model_validate({"claimName": "models", "path": path})
    assert volume.path == path.removesuffix("/")
    assert Storage.model_validate({"claimName": "adapters", "path": path}).path == path.removesuffix("/")
