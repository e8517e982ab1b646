"""The contract between operator and trainer: documents survive the journey, and none is too long for it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from claas_contract.input import AdapterIdentity, ModelLocation, ServingTarget, TrainerInput, VllmPod
from claas_contract.jobs import JobIdentity, JobReference
from claas_contract.outcome import PERMANENT_REASONS, ExitCode, FailureReason, exit_code_for
from claas_contract.progress import Progress
from claas_contract.result import TERMINATION_MESSAGE_LIMIT_BYTES, PublishedVersion, TrainerResult
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.serving import PauseMode, Probe
from claas_crds.v1alpha1.step import MOST_INVALID_SAMPLES, InvalidSample, JobPhase, SampleCounts, Timings
from claas_crds.v1alpha1.training import SupportKind, TeacherKind, TrainingConfig

# What JSON can carry: no lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SECONDS = st.none() | st.floats(min_value=0, max_value=1e6)
TIMES = st.datetimes(timezones=st.just(UTC))
NUMBERS = st.integers(min_value=0, max_value=10**9)

ADAPTERS = st.builds(AdapterIdentity, namespace=TEXT, name=TEXT, uid=TEXT, lora_id=TEXT)
JOBS = st.builds(JobIdentity, namespace=TEXT, name=TEXT, uid=TEXT, attempt=st.integers(1, 99))
MODELS = st.builds(ModelLocation, path=st.none() | TEXT, repository=st.none() | TEXT, revision=st.none() | TEXT)
PODS = st.builds(VllmPod, name=TEXT, uid=TEXT, url=TEXT, storage_path=st.none() | TEXT)
SERVING = st.builds(
    ServingTarget,
    served_name=TEXT,
    pods=st.lists(PODS, max_size=3),
    pause=st.sampled_from(PauseMode),
    drain_timeout_seconds=st.integers(1, 3600),
    max_pause_seconds=st.integers(1, 3600),
    probe=st.builds(Probe, prompt=TEXT.filter(bool), max_tokens=st.integers(1, 256)),
    has_control_token=st.booleans(),
    has_api_key=st.booleans(),
)
TRAINING = st.builds(
    TrainingConfig,
    learning_rate=st.floats(1e-9, 1.0),
    alpha=st.floats(0, 1),
    is_clip=st.floats(1, 20),
    max_grad_norm=st.floats(0, 100),
    kl_reg_weight=st.floats(0, 1),
    teacher_top_k=st.integers(10, 100),
    weight_decay=st.floats(0, 1),
    support=st.sampled_from(SupportKind),
    teacher=st.sampled_from(TeacherKind),
    teacher_update_rate=st.floats(1e-6, 1),
    max_kl=st.floats(0, 10),
    seed=st.integers(0, 2**31 - 1),
)
INPUTS = st.builds(
    TrainerInput,
    adapter=ADAPTERS,
    engine=st.sampled_from([EngineSpec.of(name) for name in EngineName]),
    model=MODELS,
    lora=st.builds(LoraSpec, rank=st.integers(4, 128), alpha=st.integers(1, 256)),
    storage_path=TEXT,
    jobs=st.lists(JOBS, max_size=2),
    parent=st.none() | NUMBERS,
    samples_file=st.none() | TEXT,
    training=TRAINING,
    serving=st.none() | SERVING,
)
METRICS = st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False), max_size=5)
VERSIONS = st.builds(
    PublishedVersion,
    number=NUMBERS,
    path=TEXT,
    digest=TEXT,
    created=TIMES,
    parent=st.none() | NUMBERS,
    jobs=st.lists(st.builds(JobReference, name=TEXT, uid=TEXT), max_size=2),
    metrics=METRICS,
)
RESULTS = st.builds(
    TrainerResult,
    succeeded=st.booleans(),
    reason=st.none() | st.sampled_from(FailureReason),
    message=TEXT,
    version=st.none() | VERSIONS,
    already_published=st.booleans(),
    swapped_pods=st.lists(TEXT, max_size=3),
    samples=st.builds(SampleCounts, total=NUMBERS, recorded=NUMBERS, reconstructed=NUMBERS, response_tokens=NUMBERS),
    invalid_samples=st.lists(st.builds(InvalidSample, index=NUMBERS, message=TEXT), max_size=3),
    timings=st.builds(Timings, queued=SECONDS, prepare=SECONDS, step=SECONDS, serving_gap=SECONDS),
)
PROGRESS = st.builds(Progress, phase=st.sampled_from(JobPhase), detail=TEXT, paused_since=st.none() | TIMES)

# A Kubernetes name has at most 253 bytes; a digest and a UID are far below that.
KUBERNETES_NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-.", min_size=1, max_size=253)
BOUNDED_VERSIONS = st.builds(
    PublishedVersion,
    number=NUMBERS,
    path=st.text("abcdefghijklmnopqrstuvwxyz/-", max_size=512),
    digest=st.just("sha256:" + "f" * 64),
    created=TIMES,
    parent=NUMBERS,
    jobs=st.builds(JobReference, name=KUBERNETES_NAMES, uid=st.uuids().map(str)).map(lambda job: [job]),
    metrics=st.dictionaries(st.text("abcdefghijklmnop_", min_size=1, max_size=32), st.floats(-1e9, 1e9), max_size=16),
)


@given(INPUTS)
def test_an_input_survives_the_journey(document: TrainerInput) -> None:
    assert TrainerInput.model_validate_json(document.model_dump_json()) == document


@given(RESULTS)
def test_a_result_survives_the_journey(result: TrainerResult) -> None:
    assert TrainerResult.model_validate_json(result.to_termination_message()) == result


@given(PROGRESS)
def test_progress_survives_the_journey(progress: Progress) -> None:
    assert Progress.model_validate_json(progress.model_dump_json()) == progress


@given(
    message=st.text(max_size=50) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    repeats=st.integers(1, 3000),
    version=st.none() | BOUNDED_VERSIONS,
    pods=st.lists(KUBERNETES_NAMES, max_size=40),
)
def test_a_termination_message_is_never_longer_than_kubernetes_keeps(
    message: str, repeats: int, version: PublishedVersion | None, pods: list[str]
) -> None:
    result = TrainerResult(
        succeeded=version is not None,
        reason=None if version else FailureReason.INTERNAL,
        message=message * repeats,
        version=version,
        swapped_pods=pods,
    )
    text = result.to_termination_message()
    assert len(text.encode()) <= TERMINATION_MESSAGE_LIMIT_BYTES
    read = TrainerResult.model_validate_json(text)
    assert (read.succeeded, read.reason, read.version) == (result.succeeded, result.reason, result.version)


@pytest.mark.parametrize("character", ['"', "\\", "\n", "\x00", "é", "🎉"])
def test_a_long_message_of_characters_that_grow_in_json_is_cut_to_fit(character: str) -> None:
    result = TrainerResult(succeeded=False, reason=FailureReason.INTERNAL, message=character * 5000)
    text = result.to_termination_message()
    assert len(text.encode()) <= TERMINATION_MESSAGE_LIMIT_BYTES
    assert TrainerResult.model_validate_json(text).message.endswith("[cut]")


@given(
    length=st.integers(0, 400),
    count=st.integers(1, MOST_INVALID_SAMPLES),
    message=st.integers(0, 5000),
    character=st.sampled_from(["x", '"', "\n", "🎉"]),
)
def test_a_termination_message_names_every_invalid_sample_however_many_words_are_left(
    length: int, count: int, message: int, character: str
) -> None:
    samples = [InvalidSample(index=10**6 + number, message=character * length) for number in range(count)]
    result = TrainerResult(
        succeeded=False, reason=FailureReason.INVALID_SAMPLE, message="m" * message, invalid_samples=samples
    )
    text = result.to_termination_message()
    assert len(text.encode()) <= TERMINATION_MESSAGE_LIMIT_BYTES
    read = TrainerResult.model_validate_json(text)
    assert [each.index for each in read.invalid_samples] == [each.index for each in samples]
    for cut, whole in zip(read.invalid_samples, samples, strict=True):
        assert cut == whole or cut.message.removesuffix("...") in whole.message


def test_a_message_that_fits_is_not_cut() -> None:
    result = TrainerResult(succeeded=False, reason=FailureReason.STORAGE_FULL, message="x" * 3000)
    assert TrainerResult.model_validate_json(result.to_termination_message()).message == "x" * 3000


@pytest.mark.parametrize("reason", FailureReason)
def test_the_exit_code_of_a_reason_says_whether_to_try_again(reason: FailureReason) -> None:
    expected = ExitCode.PERMANENT if reason in PERMANENT_REASONS else ExitCode.RETRYABLE
    assert exit_code_for(reason) is expected


PASSES = ["StorageReadOnly", "StorageFull", "StorageFailed", "ControlRefused", "ParentNotFound", "VllmUnreachable"]
FAILS_ALIKE = ["MaxPauseExceeded", "OutOfMemory", "InvalidSample", "PolicyMoved", "ParentCorrupt"]


@pytest.mark.parametrize("reason", PASSES)
def test_what_time_can_heal_is_tried_again(reason: str) -> None:
    assert exit_code_for(FailureReason(reason)) is ExitCode.RETRYABLE


@pytest.mark.parametrize("reason", FAILS_ALIKE)
def test_what_would_fail_alike_is_not_tried_again(reason: str) -> None:
    assert exit_code_for(FailureReason(reason)) is ExitCode.PERMANENT


def test_exit_codes_are_none_that_a_shell_or_a_signal_gives() -> None:
    assert not {int(code) for code in ExitCode if code} & {1, 2, *range(126, 166)}


def test_an_unknown_field_is_refused_by_name_and_its_value_is_not_repeated() -> None:
    document = {"phase": "Training", "secret_thoughts": "what the user said"}
    with pytest.raises(ValidationError) as error:
        Progress.model_validate(document)
    assert "secret_thoughts" in str(error.value)
    assert "what the user said" not in str(error.value)


def test_a_time_without_offset_is_read_as_it_was_written() -> None:
    version = PublishedVersion(number=0, path="a", digest="d", created=datetime(2026, 1, 1, tzinfo=UTC))
    assert '"created":"2026-01-01T00:00:00Z"' in version.model_dump_json()


def test_documents_that_name_one_job_as_release_0_1_0_did_are_read_as_a_list_of_one() -> None:
    job = {"namespace": "team", "name": "step", "uid": "u", "attempt": 2}
    plain = TrainerInput(
        adapter=AdapterIdentity(namespace="team", name="tone", uid="a", lora_id="team/tone"),
        model=ModelLocation(path="base"),
        lora=LoraSpec(),
        storage_path="team/tone",
    ).model_dump(mode="json", exclude={"jobs"})
    assert TrainerInput.model_validate({**plain, "job": job}).jobs == [JobIdentity.model_validate(job)]
    assert TrainerInput.model_validate({**plain, "job": None}).jobs == []
    version = {"number": 1, "path": "p", "digest": "d", "created": "2026-01-01T00:00:00Z"}
    named = PublishedVersion.model_validate({**version, "job_name": "step", "job_uid": "u"})
    assert named.jobs == [JobReference(name="step", uid="u")]
    assert PublishedVersion.model_validate({**version, "job_name": None, "job_uid": None}).jobs == []
