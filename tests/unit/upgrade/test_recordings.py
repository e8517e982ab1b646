"""What earlier releases left behind is read by this one, and steps go on from it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from claas_contract.progress import Progress
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_crds.v1alpha1.version import VersionVerdict
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.objects.workloads import Lease
from claas_operator.plan.serving_lease import read_lease
from claas_trainer.attempt.initialise import initialise
from claas_trainer.attempt.recover import recover
from claas_trainer.attempt.run import run
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths
from claas_trainer.store.versions import VersionStore
from claas_trainer.transport.pod import read_input
from claas_vllm.alias_folder import AliasFolder
from tests.builders.models import build_tiny_qwen3
from tests.simulation.cluster_api import field, text
from tests.unit.trainer.attempts import SAMPLES
from tests.upgrade.recording import RELEASES, Recording, restricted


@pytest.fixture(params=RELEASES)
def recording(request: pytest.FixtureRequest) -> Recording:
    return Recording(request.param)


@pytest.fixture
def paths(tmp_path: Path, recording: Recording) -> Paths:
    """The recorded volume, to be written to, and the model that it was trained for."""
    shutil.copytree(recording.folder / "volume", tmp_path / "storage")
    build_tiny_qwen3(tmp_path / "model" / "base")
    return Paths(storage=tmp_path / "storage", model=tmp_path / "model", scratch=tmp_path)


def test_input_documents_are_understood(recording: Recording, tmp_path: Path) -> None:
    given = list(recording.messages("input").values())
    given += [text(secret, "stringData", "input.json") for secret in recording.of_kind("Secret").values()]
    documents = [each for each in given if each]
    assert len(documents) == 11
    for document in documents:
        (tmp_path / "input.json").write_text(document)
        read = read_input(tmp_path / "input.json")
        assert read.storage_path == f"recorded-namespace/{read.adapter.name}"
        assert read.engine.name == "local"


def test_results_and_progress_are_understood(recording: Recording) -> None:
    read = {name: TrainerResult.model_validate_json(said) for name, said in recording.messages("result").items()}
    numbers = {name: result.version.number if result.version else None for name, result in read.items()}
    assert numbers == {
        "init": 0, "first": 1, "second": 2, "refused": 3, "recover": 2, "recover-nothing": None, "no-parent": None
    }  # fmt: skip
    assert {name for name, result in read.items() if not result.succeeded} == {"refused", "no-parent"}
    assert read["refused"].version is not None
    assert read["refused"].version.verdict is VersionVerdict.REJECTED
    lines = [line for said in recording.messages("progress").values() for line in said.splitlines()]
    assert {Progress.model_validate_json(line).phase for line in lines} >= {"Preparing", "Training", "Swapping"}


def test_status_that_is_read_and_written_back_says_the_same(recording: Recording) -> None:
    adapters = [AdapterObject.model_validate(each) for each in recording.of_kind("LoraAdapter").values()]
    jobs = [JobObject.model_validate(each) for each in recording.of_kind("DistillJob").values()]
    statuses: list[tuple[str, LoraAdapterStatus | DistillJobStatus]]
    statuses = [(f"LoraAdapter {each.metadata.name}", each.status) for each in adapters]
    statuses += [(f"DistillJob {each.metadata.name}", each.status) for each in jobs]
    for about, status in statuses:
        kind, name = about.split()
        recorded = field(recording.of_kind(kind)[name], "status")
        assert isinstance(recorded, dict)
        written = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        assert restricted(written, recorded) == recorded


def test_leases_are_read_with_their_grants_and_notes(recording: Recording) -> None:
    found = {name: read_lease(Lease.model_validate(each)) for name, each in recording.of_kind("Lease").items()}
    holders = {lease.deployment: lease.grant.adapter_name for lease in found.values() if lease.grant is not None}
    assert holders == {"tone": "tone", "pair": "pair", "early": "early"}
    asleep = {pod.name for lease in found.values() if lease.grant is not None for pod in lease.grant.may_pause}
    assert asleep == {"tone-0", "early-0"}
    noted = {lease.deployment: [each.job_name for each in lease.unaccounted.values()] for lease in found.values()}
    assert noted["gone"] == ["deleted"]
    assert all(lease.served for lease in found.values() if lease.deployment != "tls")


def test_versions_are_whole_with_their_verdicts(recording: Recording, paths: Paths) -> None:
    store = VersionStore(paths.adapter_folder("recorded-namespace/tone"))
    for number in store.numbers():
        store.verify(store.read(number))
    verdicts = [store.read(number).verdict.verdict.value for number in store.numbers()]
    assert verdicts == ["Untried", "Served", "Untried", "Rejected"]
    head = store.head()
    assert head is not None
    assert head.record.number == 2


async def test_what_a_job_published_is_found_and_the_next_step_starts_from_it(
    recording: Recording, paths: Paths, tmp_path: Path
) -> None:
    samples = tmp_path / "samples.json"
    samples.write_text(json.dumps(SAMPLES))
    reporter = Reporter(os.open(os.devnull, os.O_WRONLY))
    said: dict[str, TrainerResult] = {}
    for name in ("init", "recover", "recover-nothing", "second", "no-parent"):
        (tmp_path / "input.json").write_text(recording.messages("input")[name])
        document = read_input(tmp_path / "input.json")
        if name == "init":
            said[name] = initialise(document, paths, reporter)
        elif name.startswith("recover"):
            said[name] = recover(document, paths, reporter)
        else:
            parent = document.parent if name == "second" else 2
            given = document.model_copy(update={"samples_file": str(samples), "parent": parent})
            said[name] = await run(given, paths, reporter)
    numbers = {name: each.version.number if each.version else None for name, each in said.items()}
    known = {name: (numbers[name], each.already_published) for name, each in said.items()}
    assert known == {
        "init": (2, True), "recover": (2, True), "recover-nothing": (None, False), "second": (2, True),
        "no-parent": (4, False),
    }  # fmt: skip
    store = VersionStore(paths.adapter_folder("recorded-namespace/tone"))
    made = store.read(4).record
    assert made.parent == 2
    assert made.step is not None
    assert made.step.parent_digest == store.read(2).record.digest


def test_the_companions_alias_table_is_read(recording: Recording) -> None:
    (alias,) = AliasFolder(recording.folder / "aliases").read()
    assert (alias.name, alias.target, alias.version) == ("tone", "tone@4", 4)
