"""What the worker process is started with, and where things are in the pod."""

from __future__ import annotations

from pathlib import Path

import pytest

from claas_contract import places
from claas_trainer.errors import InputError
from claas_trainer.gpu import gpu_of
from claas_trainer.paths import Paths
from claas_trainer.supervisor.environment import cpu_limit_threads, worker_environment

HOMES = ("HOME", "HF_HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR")


def test_everything_a_library_writes_goes_to_the_scratch_folder() -> None:
    environment = worker_environment({"HOME": "/nonexistent"}, Paths(), offline=True)
    assert all(environment[name].startswith(places.SCRATCH_DIRECTORY) for name in HOMES)


@pytest.mark.parametrize(("offline", "said"), [(True, "1"), (False, None)])
def test_the_hub_is_never_asked_for_a_model_that_is_a_folder(offline: bool, said: str | None) -> None:
    assert worker_environment({}, Paths(), offline=offline).get("HF_HUB_OFFLINE") == said


@pytest.mark.parametrize(
    ("limit", "threads"),
    [("max 100000", None), ("50000 100000", 1), ("250000 100000", 3), ("400000 100000", 4), ("rubbish", None)],
)
def test_the_number_of_threads_follows_the_container_s_cpu_limit(
    limit: str, threads: int | None, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    assert cpu_limit_threads(tmp_path / "cpu.max") == threads


@pytest.mark.parametrize(
    ("inherited", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_idle_threads_give_their_core_away_unless_the_pod_says_how_they_wait(
    inherited: dict[str, str], spins: str | None
) -> None:
    assert worker_environment(inherited, Paths(), offline=True).get("GOMP_SPINCOUNT") == spins


@pytest.mark.parametrize(
    ("inherited", "said"), [({}, "expandable_segments:True"), ({"PYTORCH_CUDA_ALLOC_CONF": "x"}, "x")]
)
def test_gpu_memory_is_not_lost_to_fragments_unless_the_pod_says_how_it_is_taken(
    inherited: dict[str, str], said: str
) -> None:
    assert worker_environment(inherited, Paths(), offline=True)["PYTORCH_CUDA_ALLOC_CONF"] == said


def test_the_service_s_sdk_sends_no_telemetry_and_logs_no_requests_whatever_the_pod_says() -> None:
    environment = worker_environment({"TINKER_TELEMETRY": "1", "TINKER_LOG": "debug"}, Paths(), offline=True)
    assert (environment["TINKER_TELEMETRY"], environment["TINKER_LOG"]) == ("0", "")


def test_paths_are_the_contract_s_unless_the_environment_moves_them() -> None:
    assert Paths.from_environment({}) == Paths()
    moved = Paths.from_environment({"CLAAS_STORAGE_DIRECTORY": "/here", "CLAAS_PROGRESS_PORT": "1"})
    assert (moved.storage, moved.progress_port, moved.model) == (Path("/here"), 1, Path(places.MODEL_DIRECTORY))


def test_a_folder_outside_the_volume_is_refused() -> None:
    with pytest.raises(InputError):
        Paths().adapter_folder("a/../../b")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"a\nb", "line break"),
        ("schl\u00fcssel".encode(), "not ASCII"),
        (bytes(range(32)), "control character"),
    ],
)
def test_a_mounted_secret_that_holds_no_token_is_a_fault_of_the_input(
    content: bytes | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    paths = Paths(control_token=file, api_key=file)
    with pytest.raises(InputError, match=f"controlTokenSecretRef: .*{file}.*{said}"):
        paths.mounted_control_token(True)
    with pytest.raises(InputError, match=f"apiKeySecretRef: .*{said}"):
        paths.mounted_api_key(True)
    if content is not None:
        with pytest.raises(InputError, match=f"hub.tokenSecretRef: .*{said}"):
            Paths(hub_token=file).read_hub_token()
    assert paths.mounted_control_token(False) is None
    assert Paths(hub_token=tmp_path / "none").read_hub_token() is None


def test_a_mounted_token_is_read_anew_each_time_and_kept_while_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")
    token = Paths(control_token=file).mounted_control_token(True)
    assert token is not None
    assert token() == "old"
    file.write_text("new")
    assert token() == "new"
    file.unlink()
    assert token() == "new"


def test_a_gpu_that_is_not_there_is_none() -> None:
    assert gpu_of("GPU-of-another-machine") is None
