"""Steps by the deployed app in containers of Modal's own entrypoint."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path

import modal
import pytest

from claas_contract.engine import DistillBatchRequestPayload
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.engines.modal.wire import FolderRef
from claas_trainer.store.versions import StoredVersion, VersionStore
from tests.builders.training.token_samples import LocalChain, payload, samples
from tests.contract.modal.app.deployed import VOLUME, DeployedTrainer, reference, request
from tests.peers.modal.failures import COMMIT_REFUSED, KillContainer, When

pytestmark = pytest.mark.contract
LARGE = LoraSpec(rank=128, alpha=128)


def batches() -> list[DistillBatchRequestPayload]:
    """Three, the last of which names version 1."""
    named = payload(3, recorded=False)
    naming = (named.samples[0].model_copy(update={"version": 1}), *named.samples[1:])
    return [payload(1), payload(2), named.model_copy(update={"samples": naming})]


def files(folder: Path, version: StoredVersion) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in version.record.files}


async def test_three_steps_in_a_row_equal_those_of_the_local_engine_in_all_six_files(
    trainer: DeployedTrainer, local: LocalChain, first: StoredVersion
) -> None:
    parent = await trainer.upload(first, "chained")
    made: list[FolderRef] = []
    for number, batch in enumerate(batches(), start=1):
        expected = await local.step(batch, {1: local.store.read(1)} if number == 3 else None)
        step = await trainer.taken(request(batch, "chained", local.lora, parent, *made[:1] if number == 3 else ()))
        assert files(trainer.folder(step.state), expected) == files(expected.folder, expected)
        assert step.provenance == expected.record.local
        assert step.metrics == expected.record.metrics
        made.append(reference(expected, step.state))
        parent = made[-1]
    assert len(expected.record.files) == 6
    assert len(trainer.peer.containers()) == 1


async def test_payloads_above_the_inline_limits_make_the_same_version(
    trainer: DeployedTrainer, tiny: Path, tmp_path: Path
) -> None:
    chain = LocalChain(VersionStore(tmp_path), tiny, LARGE)
    parent = await trainer.upload(chain.initial(), "large")
    batch = payload(1).model_copy(update={"samples": samples(1, recorded=True, lengths=[(800, 900, 600)])})
    expected = await chain.step(batch)
    asked = request(batch, "large", LARGE, parent)
    call = await trainer.begin(asked)
    step = (await trainer.end(call)).taken
    assert step is not None
    assert step.adapter == {name: (expected.folder / name).read_bytes() for name in step.adapter}
    # Modal takes at most 8 KiB of a spawned call itself; what is larger travels by object storage.
    assert trainer.call(call).input.args_blob_id
    output = trainer.call(call).output
    assert output is not None
    assert output.result.data_blob_id


async def test_a_step_that_is_asked_for_again_is_answered_from_its_folder(
    trainer: DeployedTrainer, local: LocalChain, first: StoredVersion
) -> None:
    asked = request(payload(11), "again", local.lora, await trainer.upload(first, "again"))
    one, two = await trainer.taken(asked), await trainer.taken(asked)
    assert not one.found
    assert two.found
    assert (two.state, two.adapter, two.metrics) == (one.state, one.adapter, one.metrics)
    assert len(trainer.folders("again", 1)) == 1


@pytest.mark.parametrize(
    ("when", "found"), [(When.RECEIVED, False), (When.DONE, True)], ids=["before the commit", "after the commit"]
)
async def test_a_step_whose_container_dies_runs_again_and_is_one_version(
    trainer: DeployedTrainer, local: LocalChain, first: StoredVersion, when: When, found: bool
) -> None:
    uid = f"killed-{when.name.lower()}"
    asked = request(payload(12), uid, local.lora, await trainer.upload(first, uid))
    trainer.peer.fail("VolumeCommit", KillContainer(), when=when, times=1, of=VOLUME)
    call = await trainer.begin(asked)
    step = (await trainer.end(call)).taken
    assert step is not None
    assert len({run.container for run in trainer.call(call).runs}) == 2
    assert step.found == found
    assert trainer.folders(uid, 1) == [Path(step.state.partition("#")[0]).name]


async def test_a_commit_that_is_refused_twice_is_tried_a_third_time(
    trainer: DeployedTrainer, local: LocalChain, first: StoredVersion
) -> None:
    asked = request(payload(13), "refused", local.lora, await trainer.upload(first, "refused"))
    rule = trainer.peer.fail("VolumeCommit", COMMIT_REFUSED, times=2, of=VOLUME)
    step = await trainer.taken(asked)
    assert rule.hits == 2
    assert trainer.folder(step.state).is_dir()


async def test_a_commit_that_stays_refused_is_told_and_the_next_attempt_takes_no_second_step(
    trainer: DeployedTrainer, local: LocalChain, first: StoredVersion
) -> None:
    asked = request(payload(14), "lost", local.lora, await trainer.upload(first, "lost"))
    rule = trainer.peer.fail("VolumeCommit", COMMIT_REFUSED, of=VOLUME)
    answer = await trainer.ask(asked)
    rule.lift()
    assert answer.failure is not None
    assert answer.failure.reason is FailureReason.STORAGE_FAILED
    assert VOLUME in answer.failure.message
    again = await trainer.taken(asked)
    assert again.found
    assert len(trainer.folders("lost", 1)) == 1


async def test_a_cancelled_step_leaves_nothing_and_its_container_takes_the_next_one(
    trainer: DeployedTrainer, local: LocalChain, first: StoredVersion
) -> None:
    parent = await trainer.upload(first, "cancelled")
    long = payload(15).model_copy(update={"samples": samples(15, recorded=False, lengths=[(900, 900, 900)] * 60)})
    await trainer.taken(request(payload(16), "cancelled", local.lora, parent))
    before = [each.id for each in trainer.peer.containers()]
    call = await trainer.begin(request(long, "cancelled", local.lora, parent))
    await progress(trainer, "micro-batch 2 of")
    handle = modal.FunctionCall.from_id(call, client=await trainer.connection.client(None))  # type: ignore[arg-type]
    began = time.monotonic()
    await handle.cancel.aio()
    step = await trainer.taken(request(payload(17), "cancelled", local.lora, parent))
    assert time.monotonic() - began < 20
    assert [each.id for each in trainer.peer.containers()] == before
    assert trainer.folder(step.state).is_dir()
    assert len(trainer.folders("cancelled", 1)) == 2


async def progress(trainer: DeployedTrainer, text: str) -> None:
    """Wait until a container's log tells of it."""
    for _ in range(600):
        if any(text in container.log for container in trainer.peer.containers()):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"no container has told {text!r}")


async def test_a_parent_that_is_not_whole_on_the_volume_is_missing_until_it_is_uploaded_again(
    trainer: DeployedTrainer, local: LocalChain, first: StoredVersion
) -> None:
    parent = await trainer.upload(first, "missing")
    asked = request(payload(18), "missing", local.lora, parent)
    shutil.rmtree(trainer.folder(parent.address))
    assert (await trainer.ask(asked)).missing == (parent.address,)
    await trainer.upload(first, "missing")
    assert await trainer.taken(asked)


async def test_weights_are_read_before_the_snapshot_and_not_again_after_it(
    trainer: DeployedTrainer, local: LocalChain, first: StoredVersion
) -> None:
    for container in trainer.peer.containers():
        trainer.peer.kill_container(container.id)
    asked = request(payload(19), "snapshot", local.lora, await trainer.upload(first, "snapshot"))
    call = await trainer.begin(asked)
    step = (await trainer.end(call)).taken
    assert step is not None
    container = next(each for each in trainer.peer.containers() if each.id == trainer.call(call).runs[-1].container)
    events = [json.loads(line)["event"] for line in container.log.splitlines() if line.startswith('{"time"')]
    assert container.snapshot
    assert events.count("loaded") == 1
    assert events.index("loaded") < events.index("request")
    assert step.seconds.start == 0
    snapshot = next(
        rpc for rpc in trainer.peer.rpcs if rpc.name == "ContainerCheckpoint" and rpc.container == container.id
    )
    commits = [rpc.at for rpc in trainer.peer.rpcs if rpc.name == "VolumeCommit" and rpc.container == container.id]
    assert all(at > snapshot.at for at in commits)


async def test_a_container_that_fails_unexpectedly_takes_no_further_step_and_tells_nothing_private(
    trainer: DeployedTrainer, local: LocalChain, first: StoredVersion
) -> None:
    parent = await trainer.upload(first, "unexpected")
    batch = payload(20)
    beyond = batch.samples[0].model_copy(update={"response_ids": (987654321, *batch.samples[0].response_ids[1:])})
    asked = request(batch.model_copy(update={"samples": (beyond,)}), "unexpected", local.lora, parent)
    call = await trainer.begin(asked)
    failure = (await trainer.end(call)).failure
    assert failure is not None
    assert failure.reason is FailureReason.INTERNAL
    log = next(
        each.log for each in trainer.peer.containers(alive=False) if each.id == trainer.call(call).runs[-1].container
    )
    assert "987654321" not in f"{failure.message}{log}"
    again = await trainer.begin(request(payload(21), "unexpected", local.lora, parent))
    assert (await trainer.end(again)).taken is not None
    assert trainer.call(again).runs[-1].container != trainer.call(call).runs[-1].container
