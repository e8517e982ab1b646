"""What travels between the trainer's pod and the deployed app."""

from __future__ import annotations

import math

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_contract.engine import DistillBatchRequestPayload, TokenisedSample
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.training import TeacherKind, TrainingConfig
from claas_trainer.engines.modal.wire import (
    PROTOCOL,
    FolderRef,
    StepAnswer,
    StepFailure,
    StepRequest,
    StepSeconds,
    TakenStep,
    WireError,
)
from claas_trainer.store.record import ForwardKind, LocalProvenance

SECRET = "my sister's birthday"
ADDRESS = f"modal://claas-adapters/adapters/uid/0-{'0' * 16}#{'a' * 64}"
PROVENANCE = LocalProvenance(
    parent_digest="p" * 64,
    samples_digest="s" * 64,
    answered_by={2: "e" * 64},
    tokens=12,
    base_fingerprint="tensors:1",
    forward=ForwardKind.DECODER,
    device="CPU",
    compute_dtype="float32",
    micro_batch_tokens=2048,
    tile_rows=512,
)

ids = st.lists(st.integers(0, 2**31), max_size=5).map(tuple)
samples = st.builds(
    TokenisedSample,
    student_prompt_ids=ids,
    teacher_prompt_ids=ids,
    response_ids=ids,
    old_logprobs=st.none() | st.lists(st.floats(max_value=0, allow_nan=False), max_size=5).map(tuple),
    version=st.none() | st.integers(0, 99),
)
payloads = st.builds(
    DistillBatchRequestPayload,
    lora_id=st.just("user/coder"),
    training=st.builds(
        TrainingConfig,
        learning_rate=st.floats(min_value=1e-9, max_value=1.0, exclude_min=True),
        teacher=st.sampled_from(TeacherKind),
        seed=st.integers(0, 2**31 - 1),
    ),
    samples=st.lists(samples, min_size=1, max_size=3).map(tuple),
)
folders = st.builds(
    FolderRef,
    number=st.integers(0, 10**9),
    address=st.just(ADDRESS),
    digest=st.text("0123456789abcdef", min_size=64, max_size=64),
    optimizer=st.booleans(),
    provenance=st.none() | st.just(PROVENANCE),
)
requests = st.builds(
    StepRequest,
    adapter_uid=st.just("uid"),
    version=st.integers(1, 10**9),
    base_model=st.just("Qwen/Qwen3-8B"),
    lora=st.builds(LoraSpec, target_modules=st.none() | st.just(["q_proj"]) | st.just("all-linear")),
    payload=payloads,
    parent=folders,
    earlier=st.lists(folders, max_size=2).map(tuple),
)
numbers = st.floats(allow_nan=False)
taken = st.builds(
    TakenStep,
    adapter=st.dictionaries(st.text(max_size=9), st.binary(max_size=50), max_size=2),
    state=st.just(ADDRESS),
    metrics=st.dictionaries(st.text(max_size=9), numbers, max_size=3),
    libraries=st.just({"torch": "2.13.0"}),
    provenance=st.just(PROVENANCE),
    seconds=st.builds(StepSeconds, start=numbers, load=numbers, step=numbers, commit=numbers),
    found=st.booleans(),
)
answers = st.one_of(
    taken.map(lambda step: StepAnswer(taken=step)),
    st.builds(StepFailure, reason=st.sampled_from(FailureReason), message=st.text()).map(
        lambda failure: StepAnswer(failure=failure)
    ),
    st.just(StepAnswer(missing=(ADDRESS,))),
)


def request(**changes: object) -> StepRequest:
    sample = TokenisedSample(
        student_prompt_ids=(1,), teacher_prompt_ids=(2,), response_ids=(3,), old_logprobs=(-1.5,)
    )
    given = {
        "adapter_uid": "uid",
        "version": 1,
        "base_model": "Qwen/Qwen3-8B",
        "lora": LoraSpec(),
        "payload": DistillBatchRequestPayload(lora_id="user/coder", samples=(sample,)),
        "parent": FolderRef(number=0, address=ADDRESS, digest="d" * 64),
    }
    return StepRequest.model_validate(given | changes)


@given(sent=requests)
def test_a_request_arrives_as_it_was_sent(sent: StepRequest) -> None:
    assert StepRequest.of(cbor2.loads(cbor2.dumps(sent.document()))) == sent


@given(sent=answers)
def test_an_answer_arrives_as_it_was_sent(sent: StepAnswer) -> None:
    assert StepAnswer.of(cbor2.loads(cbor2.dumps(sent.document()))) == sent


def test_log_probabilities_that_json_does_not_know_arrive() -> None:
    sample = TokenisedSample(
        student_prompt_ids=(1,), teacher_prompt_ids=(2,), response_ids=(3,), old_logprobs=(-math.inf,)
    )
    sent = request(payload=DistillBatchRequestPayload(lora_id="user/coder", samples=(sample,)))
    assert StepRequest.of(cbor2.loads(cbor2.dumps(sent.document()))) == sent


PARENT = {"number": 0, "address": ADDRESS, "digest": "d" * 64}


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter_uid": "other"},
        {"version": 2},
        {"base_model": "Qwen/Qwen3-4B"},
        {"lora": LoraSpec(rank=8)},
        {"payload": {**request().payload.model_dump(), "training": {"seed": 7}}},
        {"payload": {**request().payload.model_dump(), "samples": request().payload.model_dump()["samples"] * 2}},
        {"parent": {**PARENT, "number": 1}},
        {"parent": {**PARENT, "digest": "e" * 64}},
        {"parent": {**PARENT, "optimizer": True}},
        {"earlier": [{**PARENT, "number": 4}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_decides_the_result_changes_the_digest(changes: dict[str, object]) -> None:
    assert request(**changes).digest != request().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"parent": {**PARENT, "address": ADDRESS.replace("0-0", "0-1")}},
        {"payload": {**request().payload.model_dump(), "lora_id": "user/renamed"}},
    ],
    ids=["another folder with the same version", "another name"],
)
def test_what_does_not_decide_the_result_leaves_the_digest(changes: dict[str, object]) -> None:
    assert request(**changes).digest == request().digest


def test_a_request_that_was_changed_on_its_way_is_refused() -> None:
    document = request().document()
    with pytest.raises(WireError, match="StepRequest"):
        StepRequest.of({**document, "version": 9})


@pytest.mark.parametrize("protocol", [PROTOCOL + 1, None, "x"])
@pytest.mark.parametrize("kind", [StepRequest, StepAnswer])
def test_another_protocol_is_told_from_a_wrong_document(
    kind: type[StepRequest] | type[StepAnswer], protocol: object
) -> None:
    with pytest.raises(WireError, match=rf"speaks {PROTOCOL}"):
        kind.of({"protocol": protocol, "failure": {"reason": SECRET}})


@pytest.mark.parametrize(
    "document", [None, 3, [], {}, {"protocol": PROTOCOL}, {"protocol": PROTOCOL, "taken": SECRET}]
)
@pytest.mark.parametrize("kind", [StepRequest, StepAnswer])
def test_errors_quote_nothing_of_what_arrived(kind: type[StepRequest] | type[StepAnswer], document: object) -> None:
    with pytest.raises(WireError) as caught:
        kind.of(document)
    assert SECRET not in str(caught.value)


def test_a_field_that_this_release_does_not_know_is_refused_in_a_request() -> None:
    with pytest.raises(WireError, match="temperature"):
        StepRequest.of({**request().document(), "temperature": 1.0})
