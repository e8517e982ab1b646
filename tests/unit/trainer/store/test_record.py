"""What `version.json` says of a version, by this trainer and by the ones before it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from pydantic import JsonValue, ValidationError

from claas_contract.engine import OWN_FILES, StateRef
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.store.record import ForwardKind, LocalProvenance, ModalProvenance, Provenance, VersionRecord

LOCAL: dict[str, JsonValue] = {
    "parent_digest": "p",
    "base_fingerprint": "tensors:b",
    "samples_digest": "s",
    "answered_by": {},
    "tokens": 9,
    "forward": "decoder",
    "device": "NVIDIA H100",
    "compute_dtype": "bfloat16",
    "micro_batch_tokens": 8192,
    "tile_rows": 1024,
    "checkpointed_layers": 3,
    "serving_residue_bytes": 5,
}
REMOTE: dict[str, JsonValue] = {"parent_digest": "p", "samples_digest": "s", "answered_by": {"3": "d"}, "tokens": 9}
"""Of an engine that tells no device: `step` has what is known of every engine."""


MODAL: dict[str, JsonValue] = {
    **LOCAL,
    "modal_call": "fc-1",
    "modal_container": "ta-1",
    "modal_gpu": "L40S",
}


def stored(**changes: JsonValue) -> VersionRecord:
    record = VersionRecord(
        number=1,
        lora_id="a",
        created=datetime(2026, 5, 4, tzinfo=UTC),
        engine="local",
        base_model="b",
        lora=LoraSpec(),
    )
    document: dict[str, JsonValue] = json.loads(record.model_dump_json(exclude={"state", "step"}))
    return VersionRecord.model_validate_json(json.dumps(document | changes))


def test_a_version_of_the_local_engine_tells_how_it_was_computed_and_reads_as_it_was_written() -> None:
    record = stored(step=LOCAL)
    assert record.local is not None
    assert (record.local.forward, record.local.tokens) == (ForwardKind.DECODER, 9)
    # Trainers before this one read the same fields at the same places.
    assert json.loads(record.model_dump_json())["step"] == LOCAL
    assert VersionRecord.model_validate_json(record.model_dump_json()) == record


def test_a_version_that_was_computed_on_modal_tells_that_and_all_that_one_of_the_local_engine_tells() -> None:
    record = stored(step=MODAL)
    assert isinstance(record.step, ModalProvenance)
    assert record.local is record.step
    assert json.loads(record.model_dump_json())["step"] == MODAL
    assert VersionRecord.model_validate_json(record.model_dump_json()) == record
    assert type(stored(step=LOCAL).step) is LocalProvenance


def test_a_version_of_an_engine_without_a_device_needs_none_of_the_local_ones_fields() -> None:
    record = stored(step=REMOTE)
    assert type(record.step) is Provenance
    assert record.local is None
    assert json.loads(record.model_dump_json())["step"] == REMOTE


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, None),
        ({"files": {"adapter_model.safetensors": "x"}}, None),
        ({"files": {"optimizer_master.safetensors": "x"}}, OWN_FILES),
        ({"files": {"optimizer.safetensors": "x"}, "step": LOCAL}, OWN_FILES),
        ({"state": {"engine": "local", "uri": "."}}, OWN_FILES),
        (
            {"state": {"engine": "other", "uri": "other://run/7", "later": 1}},
            StateRef(engine="other", uri="other://run/7"),
        ),
    ],
    ids=["version 0", "adapter alone", "before it was recorded", "in one file", "recorded", "elsewhere"],
)
def test_the_optimiser_state_is_found_also_where_an_older_trainer_did_not_say_where_it_is(
    changes: dict[str, JsonValue], state: StateRef | None
) -> None:
    record = stored(**changes)
    assert record.optimizer_state == state
    assert VersionRecord.model_validate_json(record.model_dump_json()).optimizer_state == state


@pytest.mark.parametrize("missing", ["device", "base_fingerprint", "parent_digest"])
def test_a_record_of_the_local_engine_that_lacks_a_field_is_not_taken_for_another_engines(missing: str) -> None:
    with pytest.raises(ValidationError, match=missing):
        stored(step={name: value for name, value in LOCAL.items() if name != missing})


@pytest.mark.parametrize(
    "damage",
    [{"job_uid": "u"}, {"job_uid": "u", "job_name": 7, "attempt": 1}, {"step": 5}, {"step": "x"}],
    ids=["a job's UID alone", "a name that is none", "a step that is a number", "a step that is text"],
)
def test_a_damaged_record_is_an_error_of_the_record(damage: dict[str, JsonValue]) -> None:
    """So that the version counts as not whole, as with any other damage."""
    with pytest.raises(ValidationError):
        stored(**damage)
