"""What the Modal engine refuses before it imports anything."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from claas_contract.engine import DistillBatchRequestPayload, TokenisedSample
from claas_contract.input import AdapterIdentity
from claas_contract.jobs import JobIdentity
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.engines.access import ServingAccess
from claas_trainer.engines.base import EngineTask, RemoteTask
from claas_trainer.engines.registry import make_engine
from claas_trainer.errors import TrainerError
from claas_trainer.store.journal import RunJournal
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.versions import StoredVersion

SAMPLE = TokenisedSample(student_prompt_ids=(1,), teacher_prompt_ids=(1, 2), response_ids=(3,))


def task(root: Path, *, remote: bool = True) -> EngineTask:
    record = VersionRecord(
        number=0,
        lora_id="team/tone",
        created=datetime(2026, 5, 4, tzinfo=UTC),
        engine="modal",
        base_model="base",
        lora=LoraSpec(),
    )
    service = RemoteTask(
        EngineSpec.of(EngineName.MODAL),
        LoraSpec(),
        "base",
        RunJournal(root, "job"),
        JobIdentity(namespace="team", name="job", uid="job", attempt=1),
        root / "no-key",
        root / "no-token",
        AdapterIdentity(namespace="team", name="tone", uid="uid", lora_id="team/tone"),
    )
    return EngineTask(
        root, StoredVersion(root, record), 1, lambda _: None, ServingAccess(), remote=service if remote else None
    )


@pytest.mark.parametrize(
    ("save_in_place", "remote", "reason", "said"),
    [
        (True, True, FailureReason.INVALID_INPUT, "save_in_place"),
        (False, False, FailureReason.INTERNAL, "without the settings"),
        (False, True, FailureReason.CREDENTIALS_REFUSED, r"token-id can't be read \(FileNotFoundError\)"),
    ],
)
async def test_a_step_that_can_t_be_taken_is_refused_with_its_cause(
    save_in_place: bool, remote: bool, reason: FailureReason, said: str, tmp_path: Path
) -> None:
    payload = DistillBatchRequestPayload(lora_id="team/tone", samples=(SAMPLE,), save_in_place=save_in_place)
    engine = make_engine(EngineName.MODAL)
    with pytest.raises(TrainerError, match=said) as refused:
        await engine.prepare(payload, task(tmp_path, remote=remote))
    assert refused.value.reason is reason
    await engine.close()
