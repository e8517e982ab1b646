"""What `modal deploy` asks Modal for is what docs/modal.md says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from claas_trainer.engines.modal.deployment import TrainerDeployment
from claas_trainer.paths import Paths
from claas_trainer.supervisor.environment import worker_environment
from tests.contract.modal.app.deployed import deploy
from tests.peers.modal.server import ModalPeer
from tests.peers.modal.view import DeployedApp, DeployedFunction, MountedVolume

pytestmark = pytest.mark.contract
ROOT = Path(__file__).parents[4]
SETTINGS = {
    "CLAAS_MODAL_APP": "small",
    "CLAAS_MODAL_MODEL": "acme/small",
    "CLAAS_MODAL_GPU": "H100,L40S",
    "CLAAS_MODAL_REGION": "eu,us-east",
    "CLAAS_MODAL_IDLE_SECONDS": "20",
    "CLAAS_MODAL_TIMEOUT_SECONDS": "7200",
    "CLAAS_MODAL_START_SECONDS": "300",
    "CLAAS_MODAL_CPU": "2",
    "CLAAS_MODAL_MEMORY_MIB": "16384",
    "CLAAS_MODAL_VOLUME": "others",
    "CLAAS_MODAL_WEIGHTS_VOLUME": "more-weights",
    "CLAAS_MODAL_HUB_SECRET": "hub",
}
UNSET = dict.fromkeys(SETTINGS, "")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalPeer]:
    with ModalPeer(tmp_path_factory.mktemp("bare")) as peer:
        peer.secret("hub", {"HF_TOKEN": "hf_x"})
        deploy(peer, UNSET)
        deploy(peer, SETTINGS)
        yield peer


@pytest.fixture(scope="module")
def plain(bare: ModalPeer) -> DeployedApp:
    """Deployed without settings."""
    return bare.app("claas-trainer")


@pytest.fixture(scope="module")
def small(bare: ModalPeer) -> DeployedApp:
    """Deployed with every setting."""
    return bare.app("small")


def documented() -> dict[str, tuple[str, str]]:
    """The rows of the table in docs/modal.md."""
    _, _, section = (ROOT / "docs" / "modal.md").read_text("utf-8").partition("### What is deployed")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    cells = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]
    return {name: (trainer, fill) for name, trainer, fill in cells[1:]}


def deployed(function: DeployedFunction, *, secrets: str) -> dict[str, str]:
    """The same rows of what was deployed."""

    def volume(path: str) -> str:
        found = function.volumes.get(path)
        return "nothing" if found is None else f"Volume {found.name}{', read-only' if found.read_only else ''}"

    assert function.cpu is not None
    return {
        "GPU": ", ".join(function.gpus) or "none",
        "cores": f"{function.cpu:g}",
        "memory in MiB": str(function.memory_mib),
        "at /claas/adapters": volume("/claas/adapters"),
        "at /claas/weights": volume("/claas/weights"),
        "Secrets": secrets,
        "most containers": str(function.max_containers),
        "least containers": str(function.min_containers),
        "idle window in s": str(function.idle_s),
        "longest run in s": str(function.timeout_s),
        "longest start in s": str(function.startup_timeout_s),
        "memory snapshot": "yes" if function.snapshot else "no",
    }


def test_the_documented_table_is_what_was_deployed(plain: DeployedApp) -> None:
    rows = documented()
    rows.pop("does")
    trainer, fill = plain.classes["Trainer"], plain.functions["fill_weights"]
    of_fill = deployed(fill, secrets="that of CLAAS_MODAL_HUB_SECRET")
    assert rows == {name: (value, of_fill[name]) for name, value in deployed(trainer, secrets="none").items()}


def test_the_app_has_one_class_with_one_method_and_one_function(plain: DeployedApp) -> None:
    assert {name: found.methods for name, found in plain.classes.items()} == {"Trainer": ("step",)}
    assert set(plain.functions) == {"fill_weights"}
    assert not plain.servers
    modules = {found.module for found in (*plain.classes.values(), *plain.functions.values())}
    assert modules == {"claas_trainer.engines.modal.app"}


def test_every_setting_reaches_what_is_deployed(small: DeployedApp) -> None:
    trainer, fill = small.classes["Trainer"], small.functions["fill_weights"]
    assert (trainer.gpus, trainer.regions) == (("H100", "L40S"), ("eu", "us-east"))
    assert (trainer.cpu, trainer.memory_mib) == (2.0, 16384)
    assert (trainer.idle_s, trainer.timeout_s, trainer.startup_timeout_s) == (20, 7200, 300)
    assert trainer.volumes == {
        "/claas/adapters": MountedVolume("others", 2, read_only=False, sub_path=""),
        "/claas/weights": MountedVolume("more-weights", 2, read_only=True, sub_path=""),
    }
    assert fill.volumes == {"/claas/weights": MountedVolume("more-weights", 2, read_only=False, sub_path="")}
    assert fill.secrets == ("hub",)
    assert not fill.gpus


def test_only_the_function_that_asks_the_hub_has_its_token(small: DeployedApp) -> None:
    assert "hub" not in small.classes["Trainer"].secrets


def test_containers_read_the_settings_of_the_deployment_from_the_image(
    plain: DeployedApp, small: DeployedApp
) -> None:
    read = [TrainerDeployment.of(app.classes["Trainer"].image.environment) for app in (plain, small)]
    assert read == [TrainerDeployment.of({}), TrainerDeployment.of(SETTINGS)]


def test_a_step_has_the_memory_settings_of_one_in_the_cluster(plain: DeployedApp) -> None:
    deployed = plain.classes["Trainer"].image.environment
    in_cluster = worker_environment({}, Paths.from_environment({}), offline=True)
    names = [name for name in in_cluster if name.startswith(("PYTORCH_", "GOMP_"))]
    assert names
    assert {name: deployed.get(name) for name in names} == {name: in_cluster[name] for name in names}


def test_the_image_has_the_locked_libraries_by_their_hashes(plain: DeployedApp) -> None:
    image = plain.classes["Trainer"].image
    assert image.commands[0].startswith("FROM python:3.11")
    assert "slim" in image.commands[0]
    installed = [command for command in image.commands if "pip install" in command and "trainer.txt" in command]
    assert len(installed) == 1
    assert "--require-hashes" in installed[0]
    assert "--no-deps" in installed[0]
    assert "http" not in installed[0]


def test_the_image_has_the_sources_of_the_step_and_nothing_of_the_cluster(plain: DeployedApp) -> None:
    packages = {path.split("/")[2] for path in plain.classes["Trainer"].image.sources}
    assert packages == {"claas_contract", "claas_crds", "claas_modal_client", "claas_trainer"}
    assert all(path.endswith(".py") for path in plain.classes["Trainer"].image.sources)


def test_a_wrong_setting_is_refused_before_anything_is_deployed(bare: ModalPeer) -> None:
    with pytest.raises(AssertionError, match="CLAAS_MODAL_GPU"):
        deploy(bare, {"CLAAS_MODAL_APP": "wrong", "CLAAS_MODAL_GPU": "L40S:4"})
    with pytest.raises(LookupError):
        bare.app("wrong")
