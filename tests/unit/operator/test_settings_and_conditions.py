"""The operator's settings, and conditions as plans write them."""

from __future__ import annotations

import pytest

from claas_crds.v1alpha1.conditions import Condition, ConditionStatus, condition_of
from claas_operator.errors import SettingsError
from claas_operator.plan.conditions import ConditionDraft
from claas_operator.settings import Settings
from tests.builders.world import NOW, ago, condition

IMAGE = {"CLAAS_TRAINER_IMAGE": "trainer:1"}


def test_settings_need_nothing_but_the_trainers_image() -> None:
    settings = Settings.from_environment(IMAGE)
    assert settings.trainer_image == "trainer:1"
    assert settings.engine == "local"
    assert settings.watch_namespaces == ()
    assert (settings.resync_seconds, settings.health_port, settings.metrics_port) == (30.0, 8081, 8080)
    assert settings.modal_server_url is None


def test_trainers_and_proxies_of_a_remote_engine_have_images_of_their_own_or_the_trainers() -> None:
    settings = Settings.from_environment(IMAGE)
    assert (settings.remote_trainer_image, settings.proxy_image) == ("trainer:1", "trainer:1")
    settings = Settings.from_environment({**IMAGE, "CLAAS_REMOTE_TRAINER_IMAGE": "slim:1"})
    assert (settings.trainer_image, settings.remote_trainer_image, settings.proxy_image) == (
        "trainer:1",
        "slim:1",
        "slim:1",
    )
    assert Settings.from_environment({**IMAGE, "CLAAS_INFERENCE_PROXY_IMAGE": "proxy:1"}).proxy_image == "proxy:1"


def test_modals_api_is_where_the_setting_says() -> None:
    given = {**IMAGE, "CLAAS_MODAL_SERVER_URL": "http://modal.example:8000", "CLAAS_DISTILL_EXECUTION_MODE": "modal"}
    settings = Settings.from_environment(given)
    assert (settings.modal_server_url, settings.engine) == ("http://modal.example:8000", "modal")
    assert Settings.from_environment({**IMAGE, "CLAAS_MODAL_SERVER_URL": ""}).modal_server_url is None


def test_namespaces_are_a_list_with_or_without_blanks() -> None:
    settings = Settings.from_environment({**IMAGE, "CLAAS_WATCH_NAMESPACES": "a, b,,c "})
    assert settings.watch_namespaces == ("a", "b", "c")


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, "CLAAS_TRAINER_IMAGE"),
        ({**IMAGE, "CLAAS_DISTILL_EXECUTION_MODE": "cloud"}, "CLAAS_DISTILL_EXECUTION_MODE"),
        ({**IMAGE, "CLAAS_RESYNC_SECONDS": "soon"}, "CLAAS_RESYNC_SECONDS"),
        ({**IMAGE, "CLAAS_DEFAULT_TTL_SECONDS": "a week"}, "CLAAS_DEFAULT_TTL_SECONDS"),
        ({**IMAGE, "CLAAS_DEFAULT_TTL_SECONDS": "-1"}, "CLAAS_DEFAULT_TTL_SECONDS"),
        ({**IMAGE, "CLAAS_MAX_CONCURRENT_STEPS": "many"}, "CLAAS_MAX_CONCURRENT_STEPS"),
        ({**IMAGE, "CLAAS_MAX_CONCURRENT_STEPS": "0"}, "CLAAS_MAX_CONCURRENT_STEPS"),
        ({**IMAGE, "CLAAS_HEALTH_PORT": "http"}, "CLAAS_HEALTH_PORT"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(environment: dict[str, str], variable: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        Settings.from_environment(environment)


def draft(*conditions: Condition) -> ConditionDraft:
    return ConditionDraft(NOW, 7, list(conditions))


def test_a_new_condition_has_the_time_of_now_and_is_noted() -> None:
    made = draft()
    made.set("Ready", True, "Serving", "all is well")
    (found,) = made.conditions
    assert (found.status, found.last_transition_time, found.observed_generation) == (ConditionStatus.TRUE, NOW, 7)
    assert [(note.reason, note.warning) for note in made.notes] == [("Serving", False)]


@pytest.mark.parametrize(
    ("holds", "reason", "moved", "noted"),
    [
        (True, "Before", False, False),
        (True, "Other", False, True),
        (False, "Before", True, True),
        (None, "Before", True, True),
    ],
    ids=["nothing-changes", "the-reason-changes", "the-status-changes", "it-becomes-unknown"],
)
def test_the_time_of_a_transition_moves_only_with_the_status(
    holds: bool | None, reason: str, moved: bool, noted: bool
) -> None:
    made = draft(condition("Ready", True, "Before"), condition("Other", True))
    made.set("Ready", holds, reason, "a message")
    found = condition_of(made.conditions, "Ready")
    assert found is not None
    assert found.last_transition_time == (NOW if moved else ago(30))
    assert found.message == "a message"
    assert bool(made.notes) is noted
    assert [each.type for each in made.conditions] == ["Ready", "Other"], "conditions keep their places"


def test_a_quiet_change_is_not_noted_and_a_removed_condition_is_gone() -> None:
    made = draft(condition("Ready", True))
    made.set("Ready", False, "Because", "a message", quiet=True)
    made.remove("Ready")
    assert (made.notes, made.conditions) == ([], [])
