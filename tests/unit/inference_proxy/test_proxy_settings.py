"""The proxy's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from claas_inference_proxy.errors import SettingsError
from claas_inference_proxy.settings import read_settings

LEAST = {"CLAAS_MODEL": "org/model", "CLAAS_SERVED_NAME": "tone", "CLAAS_ADAPTER_DIRECTORY": "/v/tone"}


def test_the_least_that_is_needed_has_defaults_for_the_rest() -> None:
    settings = read_settings(LEAST)
    assert (settings.model, settings.model_name, settings.base_model) == ("org/model",) * 3
    assert settings.key_file == Path("/var/run/claas/tinker/api-key")
    assert (settings.base_url, settings.project, settings.revision) == (None, None, None)
    assert (settings.port, settings.probe, settings.patience_seconds) == (8000, "Hello", 30)


def test_names_are_told_apart() -> None:
    settings = read_settings(
        {**LEAST, "CLAAS_MODEL": "/m", "CLAAS_MODEL_NAME": "base", "CLAAS_TINKER_BASE_MODEL": "Q"}
    )
    assert (settings.model, settings.model_name, settings.base_model) == ("/m", "base", "Q")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"CLAAS_MODEL": " "}, "CLAAS_MODEL"),
        ({"CLAAS_SERVED_NAME": ""}, "CLAAS_SERVED_NAME"),
        ({"CLAAS_ADAPTER_DIRECTORY": ""}, "CLAAS_ADAPTER_DIRECTORY"),
        ({"CLAAS_SERVED_NAME": "org/model"}, "CLAAS_SERVED_NAME"),
        ({"CLAAS_PORT": "many"}, "CLAAS_PORT"),
        ({"CLAAS_PORT": "0"}, "CLAAS_PORT"),
        ({"CLAAS_PORT": "70000"}, "CLAAS_PORT"),
        ({"CLAAS_REQUEST_TIMEOUT_SECONDS": "-1"}, "CLAAS_REQUEST_TIMEOUT_SECONDS"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        read_settings({**LEAST, **changes})
