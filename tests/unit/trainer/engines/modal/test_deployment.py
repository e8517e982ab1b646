"""Settings of a deployment of the app."""

from __future__ import annotations

import pytest

from claas_trainer.engines.modal.deployment import DeploymentError, TrainerDeployment, model_name


@pytest.mark.parametrize("told", ["acme/tiny", "/var/lib/claas/model/acme/tiny"])
def test_a_model_of_the_hub_and_its_folder_on_a_claim_have_the_same_name_for_the_app(told: str) -> None:
    assert model_name(told) == "acme/tiny"


def test_a_deployment_without_settings_has_the_documented_ones() -> None:
    found = TrainerDeployment.of({})
    assert (found.common.app, found.common.idle_seconds) == ("claas-trainer", 45)
    assert (found.timeout_seconds, found.start_seconds) == (3600, 1200)
    assert (found.cpu, found.memory_mib, found.hub_secret) == (4.0, 32768, "")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"CLAAS_MODAL_GPU": "none"},
        {"CLAAS_MODAL_GPU": "H100, L40S", "CLAAS_MODAL_REGION": "us-east,eu-west"},
        {"CLAAS_MODAL_GPU": "H100!", "CLAAS_MODAL_IDLE_SECONDS": "20", "CLAAS_MODAL_CPU": "0.5"},
        {"CLAAS_MODAL_MODEL": "acme/tiny", "CLAAS_MODAL_APP": "tiny", "CLAAS_MODAL_HUB_SECRET": "hub"},
        {"CLAAS_MODAL_TIMEOUT_SECONDS": "7200", "CLAAS_MODAL_START_SECONDS": "60", "CLAAS_MODAL_MEMORY_MIB": "65536"},
        {"CLAAS_MODAL_VOLUME": "a", "CLAAS_MODAL_WEIGHTS_VOLUME": "w"},
    ],
)
def test_containers_read_from_the_image_what_the_deployment_read(settings: dict[str, str]) -> None:
    deployed = TrainerDeployment.of(settings)
    assert TrainerDeployment.of(deployed.environment()) == deployed


@pytest.mark.parametrize(
    ("gpu", "expected"), [("none", ()), ("NONE", ()), ("", ("L40S",)), ("H100, L40S", ("H100", "L40S"))]
)
def test_gpus_are_ranked_or_none(gpu: str, expected: tuple[str, ...]) -> None:
    assert TrainerDeployment.of({"CLAAS_MODAL_GPU": gpu}).common.gpu == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLAAS_MODAL_APP", "a b"),
        ("CLAAS_MODAL_MODEL", "Qwen3-8B"),
        ("CLAAS_MODAL_MODEL", "../Qwen"),
        ("CLAAS_MODAL_GPU", "L40S:4"),
        ("CLAAS_MODAL_GPU", "L40S,"),
        ("CLAAS_MODAL_REGION", "US east"),
        ("CLAAS_MODAL_IDLE_SECONDS", "1"),
        ("CLAAS_MODAL_IDLE_SECONDS", "soon"),
        ("CLAAS_MODAL_TIMEOUT_SECONDS", "86401"),
        ("CLAAS_MODAL_START_SECONDS", "-60"),
        ("CLAAS_MODAL_CPU", "0"),
        ("CLAAS_MODAL_CPU", "many"),
        ("CLAAS_MODAL_MEMORY_MIB", "100"),
        ("CLAAS_MODAL_VOLUME", "/a"),
        ("CLAAS_MODAL_WEIGHTS_VOLUME", "w/x"),
        ("CLAAS_MODAL_HUB_SECRET", "a\nb"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(DeploymentError, match=name):
        TrainerDeployment.of({name: value})
