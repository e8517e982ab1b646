"""What every example of a vLLM Deployment has, so that following it works."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import yaml
from pydantic import JsonValue

REPOSITORY = Path(__file__).resolve().parents[3]
Object = dict[str, JsonValue]
EXAMPLES = sorted(
    path for path in (REPOSITORY / "docs" / "examples").glob("*.yaml") if "kind: Deployment" in path.read_text()
)


def documents(example: Path, kind: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(example.read_text()) if each["kind"] == kind]


def template(example: Path) -> Object:
    (deployment,) = documents(example, "Deployment")
    return cast(Object, cast(Object, deployment["spec"])["template"])


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_a_service_reaches_the_pods_and_its_name_is_kept_out_of_their_environment(example: Path) -> None:
    labels = cast(Object, cast(Object, template(example)["metadata"])["labels"])
    pod = cast(Object, template(example)["spec"])
    (service,) = documents(example, "Service")
    assert cast(Object, service["spec"])["selector"] == labels
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_a_server_whose_engine_is_dead_is_restarted_and_one_that_starts_is_left_alone(example: Path) -> None:
    pod = cast(Object, template(example)["spec"])
    (container,) = cast(list[Object], pod["containers"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert cast(Object, cast(Object, container[probe])["httpGet"])["path"] == "/health"
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    startup = cast(dict[str, int], container["startupProbe"])
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
