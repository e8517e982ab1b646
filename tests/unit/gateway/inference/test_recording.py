"""That rollouts say what was asked and answered, and are whole only where that is sure."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from pydantic import JsonValue

from claas_crds.v1alpha1.serving import DeploymentReference, Serving
from claas_gateway.directory.models import BaseModel, ServerGroup
from claas_gateway.inference.recording.answers import of_documents
from claas_gateway.inference.recording.record import Record, read_record
from claas_gateway.inference.recording.rollouts import rollouts_of
from claas_gateway.inference.recording.texts import system_prompt, user_prompt
from claas_gateway.inference.recording.wire import inject, wire_record
from claas_gateway.inference.request import Asked, Malformed, read_request
from claas_gateway.records import Evidence, Rollout, RolloutKind

PART: JsonValue = {"type": "text", "text": "a"}
NOW = datetime(2026, 11, 27, tzinfo=UTC)
TARGET = BaseModel("base", ServerGroup("team", "vllm", Serving(deployment_ref=DeploymentReference(name="vllm"))))


def asked(kind: RolloutKind = RolloutKind.CHAT, **body: JsonValue) -> Asked:
    needed: dict[str, JsonValue] = {"messages": [{"role": "user", "content": "hi"}]}
    needed = needed if kind is RolloutKind.CHAT else {"prompt": "hi"}
    return read_request(kind, json.dumps({"model": "base", **needed, **body}).encode())


def line(**changed: JsonValue) -> bytes:
    output: JsonValue = {"index": 0, "token_ids": [7, 8], "logprobs": None, "finish_reason": "stop"}
    call: dict[str, JsonValue] = {"prompt_token_ids": [1], "sampling": {}, "finished": True, "outputs": [output]}
    return json.dumps({"v": 1, "version": "coder@7", "calls": [{**call, **changed}]}).encode()


def document(**changed: JsonValue) -> bytes:
    choice: JsonValue = {"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 2}, **changed}).encode()


def rollout(record: Record | None, body: bytes = document(), broken: str | None = None) -> Rollout:
    [made] = rollouts_of(asked(), TARGET, "ro-1", of_documents([body]), record, NOW, broken=broken)
    return made


def test_a_record_that_agrees_with_the_answer_makes_a_whole_rollout() -> None:
    made = rollout(read_record(line(), 1))
    assert (made.incomplete, made.evidence, made.response_token_ids) == (None, Evidence.EXACT, (7, 8))
    assert (made.answer, made.user_prompt, made.finish_reason) == ("Hello", "hi", "stop")


@pytest.mark.parametrize(
    ("record", "body", "broken", "why"),
    [
        (None, document(), None, "NoRecord"),
        (read_record(line(outputs=[]), 1), document(), None, "NoRecord"),
        (read_record(line(prompt_token_ids=[]), 1), document(), None, "NoRecord"),
        (read_record(line(finished=False), 1), document(), None, "NotFinished"),
        (read_record(line(), 1), document(usage={"completion_tokens": 3}), None, "CountsDiffer"),
        (read_record(line(), 1), document(error={"message": "it failed"}), None, "ServerFailed"),
        (read_record(line(), 1), document(), "ClientDisconnected", "ClientDisconnected"),
    ],
)
def test_what_is_not_surely_whole_is_marked_and_never_trained_on(
    record: Record | None, body: bytes, broken: str | None, why: str
) -> None:
    made = rollout(record, body, broken)
    assert made.incomplete == why
    assert not made.trainable


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b'{"v":2,"calls":[]}', b'{"v":1,"calls":[{"outputs":1}]}'])
def test_a_damaged_record_is_none(damaged: bytes) -> None:
    assert read_record(damaged, 1) is None


def test_several_prompts_with_several_answers_each_become_a_rollout_each() -> None:
    request = asked(RolloutKind.COMPLETION, prompt=["one", "two"], n=2)
    outputs: list[JsonValue] = [{"index": index, "token_ids": [index]} for index in range(2)]
    call: JsonValue = {"prompt_token_ids": [1], "finished": True, "outputs": outputs}
    record = read_record(json.dumps({"v": 1, "calls": [call, call]}).encode(), 2)
    choices: list[JsonValue] = [{"index": index, "text": f"t{index}", "finish_reason": "stop"} for index in range(4)]
    made = rollouts_of(
        request, TARGET, "ro-1", of_documents([json.dumps({"choices": choices}).encode()]), record, NOW
    )
    assert [(each.choice, each.user_prompt, each.answer) for each in made] == [
        (0, "one", "t0"), (1, "one", "t1"), (2, "two", "t2"), (3, "two", "t3"),
    ]  # fmt: skip
    assert {each.request_id for each in made} == {"ro-1"}
    assert made[0].id == "ro-1"
    assert len({each.id for each in made}) == 4
    assert all(each.trainable for each in made)


@pytest.mark.parametrize(
    ("messages", "user", "system"),
    [
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "b", ""),
        (
            [{"role": "developer", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "a",
            "s",
        ),
        ([{"role": "system", "content": "s"}, {"role": "assistant", "content": None}], "", "s"),
        ([{"role": "user", "content": [{"type": "image_url"}, PART]}], "a", ""),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}], "a", ""),
    ],
)
def test_the_texts_of_a_request_are_the_users_last_and_the_systems(
    messages: JsonValue, user: str, system: str
) -> None:
    assert (user_prompt({"messages": messages}), system_prompt({"messages": messages})) == (user, system)


def test_a_changed_body_keeps_the_bytes_of_all_other_fields() -> None:
    body = b'{"model":"a", "messages":[1e400, 0.10, "\\u00e9"], "x":{"b":1,"a":12345678901234567890123}}'
    changed = read_request(RolloutKind.CHAT, body).changed(model="b")
    assert changed == b'{"model":"b","messages":[1e400, 0.10, "\\u00e9"],"x":{"b":1,"a":12345678901234567890123}}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"messages": null}',
        b'{"model": 1, "messages": []}',
        b"\xff{}",
        b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_a_body_that_is_no_request_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_request(RolloutKind.CHAT, body)


def test_what_was_asked_for_to_be_recorded_is_taken_out_again() -> None:
    body, injection = inject(asked(stream=True), "base", logprobs=True)
    sent = json.loads(body)
    assert (sent["return_token_ids"], sent["logprobs"], sent["stream_options"]) == (
        True,
        True,
        {"include_usage": True},
    )
    first: JsonValue = {"index": 0, "delta": {"role": "assistant", "content": ""}}
    shown = {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{"logprob": -1.0}]}, "token_ids": [7]}
    extra = {"index": 0, "delta": {}, "logprobs": {"content": [{"logprob": -2.0}]}, "token_ids": [8]}
    events = [
        {"choices": [first], "prompt_token_ids": [1]},
        {"choices": [shown]},
        {"choices": [extra]},
        {"choices": [], "usage": {"completion_tokens": 2}},
    ]
    documents = [json.dumps(each).encode() for each in events]
    stream = b"".join(b"data: " + each + b"\n\n" for each in documents)
    kept = [json.loads(each[6:]) for each in injection.strip_events(stream).split(b"\n\n") if each]
    assert kept == [
        {"choices": [first], "prompt_token_ids": None},
        {"choices": [{**shown, "logprobs": None, "token_ids": None}]},
    ]
    sampled = wire_record(documents, 3).answers[0]
    assert (sampled.prompt_token_ids, sampled.token_ids, sampled.logprobs) == ((1,), (7, 8), (-1.0, -2.0))


def test_what_the_client_asked_for_itself_stays() -> None:
    request = asked(stream=True, return_token_ids=True, logprobs=True, stream_options={"include_usage": True})
    _, injection = inject(request, "base", logprobs=True)
    stream = b'data: {"choices":[{"delta":{},"token_ids":[8]}]}\n\ndata: {"choices":[],"usage":{}}\n\n'
    assert injection.strip_events(stream) == stream
