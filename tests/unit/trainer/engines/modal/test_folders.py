"""Versions that the Modal engine can't go on from are told before the platform is asked for anything."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from claas_bounded.waits import Deadline
from claas_contract.engine import StateRef
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.lora import LoraSpec
from claas_modal_client.connection import ModalAccount, ModalConnection
from claas_modal_client.errors import ModalFault
from claas_trainer.engines.modal.failures import REASONS
from claas_trainer.engines.modal.folders import VersionFolders, adapter_files, uploaded_name
from claas_trainer.errors import TrainerError
from claas_trainer.store.content import digest_of
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.versions import StoredVersion


def version(state: StateRef | None, weights: str | None = None) -> StoredVersion:
    record = VersionRecord(
        number=3,
        lora_id="team/tone",
        created=datetime(2026, 5, 4, tzinfo=UTC),
        parent=2,
        engine="modal",
        base_model="base",
        lora=LoraSpec(),
        state=state,
        weights=weights,
        files={"adapter_model.safetensors": "a"},
        digest="d" * 64,
    )
    return StoredVersion(Path("/versions/3"), record)


@pytest.mark.parametrize(
    ("parent", "reason", "said"),
    [
        (
            version(StateRef(engine="tinker", uri="tinker://run/7")),
            FailureReason.INVALID_INPUT,
            "was made by engine tinker",
        ),
        (
            version(StateRef(engine="modal", uri=f"modal://others/adapters/uid/3-a#{'0' * 64}")),
            FailureReason.INVALID_INPUT,
            "spec.engine.modal.volume is claas-adapters, .* on the Volume others",
        ),
        (version(StateRef(engine="modal", uri="modal://nothing")), FailureReason.PARENT_CORRUPT, "names no folder"),
        (version(None, weights="modal://nothing"), FailureReason.PARENT_CORRUPT, "names no folder"),
    ],
    ids=["another engine", "another Volume", "a damaged address of its state", "a damaged address"],
)
async def test_a_parent_whose_state_can_t_be_had_is_refused(
    parent: StoredVersion, reason: FailureReason, said: str
) -> None:
    folders = VersionFolders(ModalConnection(ModalAccount(None)), "claas-adapters", "uid", Deadline.after(1))
    with pytest.raises(TrainerError, match=said) as refused:
        await folders.parent(parent)
    assert refused.value.reason is reason


def test_an_upload_is_named_by_the_version_s_digest_or_by_that_of_its_adapter_alone() -> None:
    files = {"adapter_config.json": "a", "adapter_model.safetensors": "b", "optimizer_master.safetensors": "c"}
    assert uploaded_name(7, files) == f"7-{digest_of(files)[:16]}"
    alone = adapter_files(files)
    assert alone.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert uploaded_name(7, alone) != uploaded_name(7, files)


def test_every_failure_of_the_platform_has_a_reason() -> None:
    assert REASONS.keys() == set(ModalFault)
