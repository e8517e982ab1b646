"""Settings of a deployment of the server, and how vLLM is started with them."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import claas_vllm
from claas_modal_client.deployment import DeploymentError
from claas_modal_vllm.command import sleeps, vllm_command, vllm_environment
from claas_modal_vllm.deployment import ServerDeployment


def test_a_deployment_without_settings_has_the_documented_ones() -> None:
    found = ServerDeployment.of({})
    assert (found.common.app, found.common.model, found.model_name) == (
        "claas-vllm",
        "Qwen/Qwen3-8B",
        "Qwen/Qwen3-8B",
    )
    assert (found.common.gpu, found.min_containers, found.max_containers) == (("L40S",), 0, 1)
    assert (found.control_secret, found.snapshot) == ("claas-control", False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"CLAAS_MODAL_GPU": "none", "CLAAS_MODAL_GPU_SNAPSHOT": "on"},
        {"CLAAS_MODAL_VLLM_ARGS": "--max-model-len 4096 --chat-template '{{ messages }}'"},
        {"CLAAS_MODAL_MODEL_NAME": "qwen3-8b", "CLAAS_MODAL_VLLM_IMAGE": "acme/vllm:v1"},
        {"CLAAS_MODAL_MIN_CONTAINERS": "1", "CLAAS_MODAL_MAX_CONTAINERS": "3", "CLAAS_MODAL_TARGET_CONCURRENCY": "8"},
        {"CLAAS_MODAL_MAX_LORA_RANK": "8", "CLAAS_MODAL_MAX_LORAS": "9", "CLAAS_MODAL_CPU": "0.5"},
        {"CLAAS_MODAL_START_SECONDS": "600", "CLAAS_MODAL_GRACE_SECONDS": "0", "CLAAS_MODAL_MEMORY_MIB": "4096"},
        {"CLAAS_MODAL_ROUTING_REGION": "eu-west", "CLAAS_MODAL_CONTROL_SECRET": "mine"},
    ],
)
def test_containers_read_from_the_image_what_the_deployment_read(settings: dict[str, str]) -> None:
    deployed = ServerDeployment.of(settings)
    assert ServerDeployment.of(deployed.environment()) == deployed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLAAS_MODAL_MODEL_NAME", "a b"),
        ("CLAAS_MODAL_VLLM_IMAGE", "-x"),
        ("CLAAS_MODAL_VLLM_ARGS", "--chat-template 'open"),
        ("CLAAS_MODAL_MAX_LORA_RANK", "12"),
        ("CLAAS_MODAL_MAX_LORAS", "1"),
        ("CLAAS_MODAL_MIN_CONTAINERS", "2"),
        ("CLAAS_MODAL_MAX_CONTAINERS", "0"),
        ("CLAAS_MODAL_TARGET_CONCURRENCY", "0"),
        ("CLAAS_MODAL_START_SECONDS", "5"),
        ("CLAAS_MODAL_GRACE_SECONDS", "4000"),
        ("CLAAS_MODAL_ROUTING_REGION", "US east"),
        ("CLAAS_MODAL_CONTROL_SECRET", "a/b"),
        ("CLAAS_MODAL_GPU_SNAPSHOT", "yes"),
        ("CLAAS_MODAL_GPU", "L40S:4"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(DeploymentError, match=name):
        ServerDeployment.of({name: value})


def test_vllm_serves_the_model_of_the_volume_with_the_companion_and_room_for_a_swap() -> None:
    command = vllm_command(ServerDeployment.of({"CLAAS_MODAL_MODEL_NAME": "qwen3-8b"}), "0.0.0.0", 8000)
    options = dict(pairwise(command))
    assert options["--model"] == "/weights/Qwen/Qwen3-8B"
    assert options["--served-model-name"] == "qwen3-8b"
    assert options["--middleware"] == "claas_vllm.Companion"
    assert (options["--host"], options["--port"]) == ("0.0.0.0", "8000")
    assert (options["--max-lora-rank"], options["--max-loras"], options["--api-server-count"]) == ("64", "4", "1")
    assert options["--shutdown-timeout"] == "60"
    assert "--enable-lora" in command


def test_arguments_of_the_deployment_come_last() -> None:
    command = vllm_command(ServerDeployment.of({"CLAAS_MODAL_VLLM_ARGS": "--max-loras 9 --dtype 'float 32'"}), "h", 1)
    assert command[-4:] == ["--max-loras", "9", "--dtype", "float 32"]


@pytest.mark.parametrize(
    ("gpu", "snapshot", "expected"), [("L40S", "on", True), ("L40S", "off", False), ("none", "on", False)]
)
def test_only_a_snapshot_of_a_gpu_has_a_sleeping_vllm(gpu: str, snapshot: str, expected: bool) -> None:
    deployment = ServerDeployment.of({"CLAAS_MODAL_GPU": gpu, "CLAAS_MODAL_GPU_SNAPSHOT": snapshot})
    assert sleeps(deployment) is expected
    assert ("--enable-sleep-mode" in vllm_command(deployment, "0.0.0.0", 8000)) is expected


def test_vllm_gets_the_control_token_as_a_file_only_and_finds_the_companion() -> None:
    environment = vllm_environment(
        {"CLAAS_CONTROL_TOKEN": "geheim", "PATH": "/bin", "PYTHONPATH": "/root:/other"}, Path("/tmp/claas/token")
    )
    assert "geheim" not in str(environment)
    assert environment["CLAAS_TOKEN_FILE"] == "/tmp/claas/token"
    assert environment["PATH"] == "/bin"
    places = environment["PYTHONPATH"].split(":")
    assert places[0] == str(Path(claas_vllm.__file__).parents[1])
    assert places[1:] == ["/root", "/other"]
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == environment["VLLM_SERVER_DEV_MODE"] == "1"


def test_a_deployment_needs_nothing_but_modals_client() -> None:
    lines = "import sys; sys.modules |= dict.fromkeys(['httpx', 'pydantic', 'vllm']); import claas_modal_vllm.app"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_image_has_the_release_of_vllm_that_the_tests_run() -> None:
    from claas_modal_vllm.image import VLLM_VERSION

    locked = (Path(__file__).parents[3] / "requirements" / "dev.txt").read_text()
    assert f"\nvllm-cpu=={VLLM_VERSION} " in locked
