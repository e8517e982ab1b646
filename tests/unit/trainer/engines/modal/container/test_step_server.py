"""Steps in a container of Modal, with folders as Volumes and the real engine on a tiny model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from claas_contract.engine import DistillBatchRequestPayload
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.training import TeacherKind, TrainingConfig
from claas_trainer.engines.local import local_step
from claas_trainer.engines.local.decoder_placement import DecoderPlacement
from claas_trainer.engines.local.placement import Fit
from claas_trainer.engines.modal.container import step_server
from claas_trainer.engines.modal.container.base_weights import BaseModelOnVolume
from claas_trainer.engines.modal.container.mounted_versions import STEP_FILE
from claas_trainer.engines.modal.wire import PROTOCOL, FolderRef, StepAnswer, TakenStep
from claas_trainer.store.versions import StoredVersion, VersionStore
from tests.builders.models import build_tiny_qwen3
from tests.builders.training.token_samples import LocalChain, payload
from tests.unit.trainer.engines.modal.container.modal_volume import Site, reference, request
from tests.unit.trainer.tiny_models import build_gemma

EMA = TrainingConfig(learning_rate=1e-3, teacher_top_k=10, teacher=TeacherKind.EMA)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Steps of such a small model are faster on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def chain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[StoredVersion]:
    """Versions 0 to 3, by the local engine; the last step's samples name versions 1 and 2."""
    made = LocalChain(VersionStore(tmp_path_factory.mktemp("store")), model)

    async def steps() -> list[StoredVersion]:
        versions = [made.initial()]
        for number, batch in enumerate(batches(), start=1):
            versions.append(await made.step(batch, {1: versions[1]} if number == 3 else None))
        return versions

    return asyncio.run(steps())


def batches() -> list[DistillBatchRequestPayload]:
    named = payload(3, recorded=False, training=EMA)
    naming = (named.samples[0].model_copy(update={"version": 1}), *named.samples[1:])
    return [payload(1, training=EMA), payload(2, training=EMA), named.model_copy(update={"samples": naming})]


@pytest.fixture
def site(tmp_path: Path, model: Path) -> Site:
    made = Site.at(tmp_path, model)
    made.start()
    return made


def taken(answer: StepAnswer) -> TakenStep:
    assert answer.taken is not None, answer
    return answer.taken


def failure(answer: StepAnswer) -> tuple[FailureReason, str]:
    assert answer.failure is not None, answer
    return answer.failure.reason, answer.failure.message


def test_three_steps_in_a_row_equal_those_of_the_local_engine_byte_for_byte(
    site: Site, chain: list[StoredVersion]
) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    first: FolderRef | None = None
    for number, batch in enumerate(batches(), start=1):
        step = taken(site.ask(request(batch, parent, *([first] if number == 3 and first else []))))
        local = chain[number]
        folder = site.folder(step.state)
        assert {name: (folder / name).read_bytes() for name in local.record.files} == {
            name: (local.folder / name).read_bytes() for name in local.record.files
        }
        assert {name: (local.folder / name).read_bytes() for name in step.adapter} == step.adapter
        assert step.provenance == local.record.local
        assert step.metrics == local.record.metrics
        assert not step.found
        parent = reference(local, step.state, optimizer=True)
        first = first or parent
    assert len([name for name in local.record.files if name.startswith("optimizer")]) == 5


def test_a_step_that_is_asked_for_again_is_answered_from_its_folder_without_a_second_step(
    site: Site, chain: list[StoredVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    asked = request(batches()[0], parent)
    step = taken(site.ask(asked))
    monkeypatch.setattr(step_server, "prepare", None)
    again = taken(site.ask(asked))
    assert again.found
    assert (again.adapter, again.state, again.metrics) == (step.adapter, step.state, step.metrics)
    assert (again.provenance, again.libraries) == (step.provenance, step.libraries)
    assert again.seconds.step == step.seconds.step


def test_a_request_that_differs_takes_a_step_of_its_own(site: Site, chain: list[StoredVersion]) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    one, other = (taken(site.ask(request(payload(seed), parent))) for seed in (1, 2))
    assert one.state != other.state
    assert one.adapter != other.adapter


@pytest.mark.parametrize("damage", ["manifest.json", "step.json", "optimizer_exp_avg.safetensors", "cut"])
def test_a_folder_that_is_not_whole_is_no_answer(site: Site, chain: list[StoredVersion], damage: str) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    asked = request(batches()[0], parent)
    step = taken(site.ask(asked))
    folder = site.folder(step.state)
    if damage == "cut":
        (folder / "adapter_model.safetensors").write_bytes(b"")
    else:
        names = [path.name for path in folder.iterdir()]
        (folder / next(name for name in names if name == damage or name.startswith(damage[:9]))).unlink()
    again = taken(site.ask(asked))
    assert not again.found
    assert again.state != step.state
    assert again.adapter == step.adapter


def test_a_parent_that_is_not_on_the_volume_is_told_by_its_address(site: Site, chain: list[StoredVersion]) -> None:
    parent = site.versions.upload(chain[1], "adapter-uid")
    earlier = site.versions.upload(chain[0], "adapter-uid")
    asked = request(batches()[1], parent, earlier)
    for ref in (parent, earlier):
        shutil.rmtree(site.folder(ref.address))
    assert site.ask(asked).missing == (parent.address, earlier.address)


@pytest.mark.parametrize("file", ["manifest.json", "adapter_model.safetensors", "adapter_config.json", "optimizer"])
@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_parent_that_is_not_whole_is_missing(
    site: Site, chain: list[StoredVersion], file: str, damage: str
) -> None:
    parent = site.versions.upload(chain[1], "adapter-uid")
    path = next(each for each in site.folder(parent.address).iterdir() if each.name.startswith(file))
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"~")
    assert site.ask(request(batches()[1], parent)).missing == (parent.address,)


def test_a_parent_without_the_optimiser_state_that_it_should_have_is_missing(
    site: Site, chain: list[StoredVersion]
) -> None:
    parent = site.versions.upload(chain[1], "adapter-uid", optimizer=False)
    assert parent.optimizer
    assert site.ask(request(batches()[1], parent)).missing == (parent.address,)


def test_a_version_on_another_volume_is_told_with_what_to_do(site: Site, chain: list[StoredVersion]) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    away = parent.model_copy(update={"address": parent.address.replace("claas-adapters", "others", 1)})
    reason, message = failure(site.ask(request(batches()[0], away)))
    assert reason is FailureReason.APP_NOT_DEPLOYED
    assert "CLAAS_MODAL_VOLUME" in message


def test_a_request_for_another_base_model_is_told_with_what_to_do(site: Site, chain: list[StoredVersion]) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    asked = request(batches()[0], parent).model_copy(update={"base_model": "acme/other", "digest": ""})
    reason, message = failure(site.ask(type(asked).model_validate(asked.model_dump())))
    assert reason is FailureReason.APP_NOT_DEPLOYED
    assert "CLAAS_MODAL_MODEL=acme/other" in message


@pytest.mark.parametrize("document", [{"protocol": PROTOCOL + 1}, {"protocol": PROTOCOL}, {}, None])
def test_a_trainer_of_another_release_is_told_to_deploy_again(site: Site, document: object) -> None:
    reason, message = failure(StepAnswer.of(site.server.step(document)))
    assert reason is FailureReason.APP_NOT_DEPLOYED
    assert "deploy it again" in message


def test_a_parent_of_another_base_model_is_refused(
    site: Site, chain: list[StoredVersion], tmp_path: Path, model: Path
) -> None:
    parent = site.versions.upload(chain[1], "adapter-uid")
    assert parent.provenance is not None
    other = parent.provenance.model_copy(update={"base_fingerprint": "tensors:" + "0" * 64})
    reason, message = failure(site.ask(request(batches()[1], parent.model_copy(update={"provenance": other}))))
    assert reason is FailureReason.INVALID_INPUT
    assert "another base model" in message


def test_a_step_that_fails_its_checks_says_so_and_leaves_nothing_on_the_volume(
    site: Site, chain: list[StoredVersion]
) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    before = sorted(site.versions.root.rglob("*"))
    training = TrainingConfig(learning_rate=0.5, teacher_top_k=10, max_kl=1e-3)
    reason, _ = failure(site.ask(request(payload(1, training=training), parent)))
    assert reason is FailureReason.POLICY_MOVED
    assert sorted(site.versions.root.rglob("*")) == before
    assert taken(site.ask(request(payload(1), parent)))
    assert not site.retired


def test_an_unexpected_error_is_told_without_its_text_and_the_process_is_not_used_again(
    site: Site, chain: list[StoredVersion], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("my sister's birthday")

    parent = site.versions.upload(chain[0], "adapter-uid")
    monkeypatch.setattr(step_server, "prepare", broken)
    answer = site.ask(request(payload(1), parent))
    reason, message = failure(answer)
    assert reason is FailureReason.INTERNAL
    assert "KeyError" in message
    assert site.retired == [True]
    assert "sister" not in f"{message}{capsys.readouterr().out}"


class Cancelled(BaseException):
    """As Modal's SDK interrupts a call."""


@pytest.mark.parametrize("place", ["prepare", "acquire", "take", "write", "rename", "commit"])
def test_a_call_that_is_cancelled_leaves_nothing_half_written_and_the_next_one_goes_on(
    site: Site, chain: list[StoredVersion], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    asked = request(payload(1), parent)

    def cancel(*arguments: object, **options: object) -> None:
        raise Cancelled

    with monkeypatch.context() as patched:
        match place:
            case "prepare":
                patched.setattr(step_server, "prepare", cancel)
            case "acquire" | "take":
                patched.setattr(f"claas_trainer.engines.local.local_step.PreparedTraining.{place}", cancel)
            case "write":
                patched.setattr("claas_trainer.engines.modal.container.mounted_versions.write_file", cancel)
            case "rename":
                patched.setattr(Path, "rename", cancel)
            case "commit":
                patched.setattr(site.versions, "before_commit", cancel)
        with pytest.raises(Cancelled):
            site.ask(asked)
    home = site.versions.root / "adapters" / "adapter-uid"
    left = [path.name for path in home.iterdir() if path.name.startswith((".", asked.folder_prefix))]
    assert len(left) == (1 if place == "commit" else 0)
    again = taken(site.ask(asked))
    assert again.found == (place == "commit")


def test_a_commit_that_is_refused_a_little_is_tried_again(site: Site, chain: list[StoredVersion]) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    site.versions.refused = 2
    assert taken(site.ask(request(payload(1), parent)))
    assert site.versions.slept == [0.5, 1.0]


def test_a_commit_that_stays_refused_is_a_failure_and_the_next_attempt_takes_no_second_step(
    site: Site, chain: list[StoredVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    asked = request(payload(1), parent)
    site.versions.refused = 4
    reason, message = failure(site.ask(asked))
    assert reason is FailureReason.STORAGE_FAILED
    assert "another commit is under way" in message
    monkeypatch.setattr(step_server, "prepare", None)
    assert taken(site.ask(asked)).found
    assert site.versions.commits == 1


def test_no_file_of_the_volumes_is_open_or_mapped_when_they_are_committed(
    site: Site, chain: list[StoredVersion]
) -> None:
    used: list[str] = []

    def look() -> None:
        for descriptor in Path("/proc/self/fd").iterdir():
            try:
                used.append(str(descriptor.readlink()))
            except OSError:
                continue
        used.extend(Path("/proc/self/maps").read_text().split())

    first = site.versions.upload(chain[1], "adapter-uid")
    parent = site.versions.upload(chain[2], "adapter-uid")
    site.versions.before_commit = look
    assert taken(site.ask(request(batches()[2], parent, first)))
    assert used
    assert [each for each in used if "-volume/" in each] == []


class Beside(DecoderPlacement):
    """The CPU, which says what a GPU with others on it would."""

    planned_with: ClassVar[list[int | None]] = []

    def __init__(self, *arguments: Any) -> None:
        self.planned_with.append(arguments[3])
        super().__init__(*arguments)

    def acquire(self) -> Fit:
        return dataclasses.replace(super().acquire(), residue_bytes=3 << 30)


def test_a_step_is_planned_for_a_gpu_of_its_own_whatever_serving_kept_of_the_parents(
    site: Site, chain: list[StoredVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_step, "DecoderPlacement", Beside)
    parent = site.versions.upload(chain[1], "adapter-uid")
    assert parent.provenance is not None
    beside_vllm = parent.provenance.model_copy(update={"serving_residue_bytes": 2 << 30})
    asked = request(batches()[1], parent.model_copy(update={"provenance": beside_vllm}))
    step = taken(site.ask(asked))
    assert Beside.planned_with == [0]
    assert step.provenance.serving_residue_bytes is None


def test_a_step_file_holds_nothing_of_the_samples(site: Site, chain: list[StoredVersion]) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    step = taken(site.ask(request(payload(1), parent)))
    told = json.loads((site.folder(step.state) / STEP_FILE).read_text())
    assert set(told) == {"request", "metrics", "libraries", "provenance", "seconds", "place"}


def test_a_start_is_told_with_its_first_step_alone(site: Site, chain: list[StoredVersion]) -> None:
    parent = site.versions.upload(chain[0], "adapter-uid")
    seconds = [taken(site.ask(request(payload(seed), parent))).seconds for seed in (1, 2)]
    assert seconds[0].start > 0
    assert seconds[1].start == 0
    assert all(each.load > 0 and each.step > 0 and each.commit > 0 for each in seconds)


def test_a_model_that_is_missing_is_told_by_each_step_until_it_is_there(
    tmp_path: Path, model: Path, chain: list[StoredVersion]
) -> None:
    site = Site.at(tmp_path, None)
    site.start()
    parent = site.versions.upload(chain[0], "adapter-uid")
    reason, message = failure(site.ask(request(payload(1), parent)))
    assert reason is FailureReason.MODEL_NOT_FOUND
    assert "fill_weights" in message
    shutil.copytree(model, site.weights.root / "acme" / "tiny")
    assert taken(site.ask(request(payload(1), parent)))


def test_a_container_starts_whatever_happens_while_it_reads_the_model_and_tells_it_with_each_step(
    tmp_path: Path, model: Path, chain: list[StoredVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ValueError("of a library")

    site = Site.at(tmp_path, model)
    parent = site.versions.upload(chain[0], "adapter-uid")
    with monkeypatch.context() as patched:
        patched.setattr(BaseModelOnVolume, "read", broken)
        site.start()
        reason, message = failure(site.ask(request(payload(1), parent)))
        assert reason is FailureReason.INTERNAL
        assert "ValueError" in message
    assert taken(site.ask(request(payload(1), parent)))


def test_a_model_that_was_replaced_since_the_snapshot_is_read_again(
    site: Site, tmp_path: Path, chain: list[StoredVersion]
) -> None:
    folder = site.weights.root / "acme" / "tiny"
    shutil.rmtree(folder)
    build_tiny_qwen3(folder, seed=7)
    (folder / "claas-weights.json").write_text('{"repository": "acme/tiny", "revision": "1", "files": {}}')
    site.server.resume(restored=True)
    parent = site.versions.upload(chain[0], "adapter-uid")
    step = taken(site.ask(request(payload(1), parent)))
    assert chain[1].record.local is not None
    assert step.provenance.base_fingerprint != chain[1].record.local.base_fingerprint


async def test_a_model_that_only_the_generic_forward_knows_is_trained_too(tmp_path: Path) -> None:
    model = build_gemma(tmp_path / "gemma")
    local = LocalChain(VersionStore(tmp_path / "store"), model)
    initial = local.initial()
    expected = await local.step(payload(1))
    site = Site.at(tmp_path, model)
    site.start()
    step = taken(site.ask(request(payload(1), site.versions.upload(initial, "adapter-uid"))))
    assert step.adapter == {name: (expected.folder / name).read_bytes() for name in step.adapter}
