"""The settings that all Modal apps have."""

from __future__ import annotations

import pytest

from claas_modal_client.deployment import CommonSettings, DeploymentError, DeploymentVariables


def read(settings: dict[str, str]) -> CommonSettings:
    return CommonSettings.of(DeploymentVariables(settings), app="claas-any", idle_seconds=30)


def test_without_settings_the_documented_ones_hold() -> None:
    assert read({}) == CommonSettings(
        app="claas-any",
        model="Qwen/Qwen3-8B",
        gpu=("L40S",),
        region=(),
        idle_seconds=30,
        volume="claas-adapters",
        weights_volume="claas-weights",
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"CLAAS_MODAL_GPU": "none"},
        {"CLAAS_MODAL_GPU": "H100, L40S", "CLAAS_MODAL_REGION": "us-east,eu-west"},
        {"CLAAS_MODAL_GPU": "H100!", "CLAAS_MODAL_IDLE_SECONDS": "20"},
        {"CLAAS_MODAL_MODEL": "acme/tiny", "CLAAS_MODAL_APP": "tiny"},
        {"CLAAS_MODAL_VOLUME": "a", "CLAAS_MODAL_WEIGHTS_VOLUME": "w"},
    ],
)
def test_the_image_says_again_all_that_was_set(settings: dict[str, str]) -> None:
    assert read(read(settings).environment()) == read(settings)


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
        ("CLAAS_MODAL_VOLUME", "/a"),
        ("CLAAS_MODAL_WEIGHTS_VOLUME", "w/x"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(DeploymentError, match=name):
        read({name: value})
