"""Documents of samples as tools export them: what is read, what is refused, and that no message shows a text."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_crds.samples.checks import InvalidSamplesError, SampleError
from claas_crds.samples.documents import read_document
from claas_crds.v1alpha1.training import ChatTurn, DistillBatchItem, TurnRole

GOOD: dict[str, object] = {"user_prompt": "Hi?", "response": "Ho.", "feedback": "shorter"}
RECORDED = GOOD | {"response_token_ids": [1, 2], "response_logprobs": [-0.5, -1.5]}
FOREIGN: dict[str, object] = {"user_prompt": "Wie heißt das? 何ですか", "response": "Ça va 🙂", "feedback": "قصير"}
U, A, S = TurnRole.USER, TurnRole.ASSISTANT, TurnRole.SYSTEM


def batch(**changes: object) -> bytes:
    """Three good samples and a fourth with changes; `...` removes a field."""
    sample = {name: value for name, value in (RECORDED | changes).items() if value is not ...}
    return json.dumps([GOOD, GOOD, GOOD, sample]).encode()


def one(sample: dict[str, object]) -> DistillBatchItem:
    (found,) = read_document(json.dumps([sample]).encode())
    return found


def refusal(data: bytes) -> SampleError:
    with pytest.raises(InvalidSamplesError) as caught:
        read_document(data)
    (fault,) = caught.value.faults
    return fault


TWO = [FOREIGN, GOOD]
LIST = json.dumps(TWO, ensure_ascii=False)
LINES = "\n".join(json.dumps(each, ensure_ascii=False) for each in TWO)


@pytest.mark.parametrize(
    "data",
    [
        LIST.encode(),
        LIST.encode("utf-8-sig"),
        LIST.encode("utf-16"),
        LIST.encode("utf-16-be"),
        b"\xff\xfe\x00\x00" + LIST.encode("utf-32-le"),
        json.dumps(TWO).encode(),
        json.dumps({"samples": TWO}).encode(),
        LINES.encode(),
        LINES.encode("utf-8-sig"),
        b"\n".join(line.encode("utf-8-sig") for line in LINES.split("\n")),
        (LINES.replace("\n", "\r\n\r\n") + "\r\n").encode(),
        "\n".join(json.dumps(each, indent=2) for each in TWO).encode(),
    ],
)
def test_the_same_samples_are_read_from_a_list_lines_or_an_object_in_every_unicode_encoding(data: bytes) -> None:
    assert read_document(data) == [DistillBatchItem.model_validate(each) for each in TWO]


def test_a_line_of_json_lines_may_hold_a_line_separator_of_unicode() -> None:
    sample = GOOD | {"response": "one\u2028two\u0085three"}
    assert read_document(json.dumps(sample, ensure_ascii=False).encode())[0].response == sample["response"]


@pytest.mark.parametrize("absent", [None, float("nan")])
@pytest.mark.parametrize("field", ["system_prompt", "prompt", "prompt_token_ids", "response_logprobs", "messages"])
def test_null_and_the_nan_of_pandas_mean_that_a_field_is_absent(field: str, absent: float | None) -> None:
    assert one(GOOD | {field: absent}) == DistillBatchItem.model_validate(GOOD)


def test_whole_numbers_may_be_written_as_fractions_and_log_probabilities_without() -> None:
    found = one(GOOD | {"response_token_ids": [7.0, 8.0], "response_logprobs": [0, -2]})
    assert found.response_token_ids == [7, 8]
    assert [type(each) for each in found.response_token_ids] == [int, int]
    assert found.response_logprobs == [0.0, -2.0]
    assert one(RECORDED | {"response_logprobs": [1e-7, 0.0]})


def test_what_exports_put_beside_a_sample_is_read_past() -> None:
    beside: dict[str, object] = {"_id": "abc-1", "created_at": 17, "metadata": {"team": "x"}, "model": "tone"}
    assert one(GOOD | beside) == DistillBatchItem.model_validate(GOOD)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("fb-01k4", "fb-01k4"),
        ("3f2b8c1e-6a0d-4d51-9a58-0a6f5f8f1f10", "3f2b8c1e-6a0d-4d51-9a58-0a6f5f8f1f10"),
        (17, "17"),
        ("", ""),
        (None, ""),
        (1.5, ""),
        (True, ""),
        ({"$oid": "5f"}, ""),
        ("two words", ""),
        ("line\n", ""),
        ("x" * 64, "x" * 64),
        ("x" * 65, ""),
    ],
)
def test_an_identifier_is_kept_and_anything_else_that_exports_call_so_has_no_effect(given: object, kept: str) -> None:
    assert one(GOOD | {"id": given}) == DistillBatchItem.model_validate(GOOD | {"id": kept})


def test_a_correction_may_take_the_place_of_the_feedback() -> None:
    corrected: dict[str, object] = {"user_prompt": "Hi?", "response": "Ho.", "correction": "Hello."}
    forms: list[dict[str, object]] = [{}, {"feedback": ""}, {"feedback": None}, {"feedback": "shorter"}]
    for feedback in forms:
        found = one(corrected | feedback)
        assert (found.correction, found.feedback) == ("Hello.", feedback.get("feedback") or "")
    found = one({"messages": CHAT, "correction": "Nothing at all."})
    assert (found.response, found.correction, found.feedback) == ("Nothing!", "Nothing at all.", "")


def test_a_version_is_a_whole_number() -> None:
    assert [one(RECORDED | {"version": given}).version for given in (0, 7, 7.0, None)] == [0, 7, 7, None]


CHAT: list[dict[str, object]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": [{"type": "text", "text": "What now?"}]},
    {"role": "assistant", "content": "Nothing!", "refusal": None, "tool_calls": []},
]
SHAREGPT = [
    {"from": {"system": "system", "user": "human", "assistant": "gpt"}[str(turn["role"])], "value": turn["content"]}
    for turn in CHAT
]
WHOLE = DistillBatchItem(
    system_prompt="Be kind.",
    messages=[ChatTurn(role=U, content="Hello"), ChatTurn(role=A, content="Good day.")],
    user_prompt="What now?",
    response="Nothing!",
    feedback="help",
)


@pytest.mark.parametrize(
    "sample",
    [
        {"messages": CHAT, "feedback": "help"},
        {"messages": CHAT[:-1], "response": "Nothing!", "feedback": "help"},
        {"messages": [{**CHAT[0], "role": "developer"}, *CHAT[1:]], "feedback": "help"},
        {"messages": CHAT[1:], "system_prompt": "Be kind.", "feedback": "help"},
        {"conversations": SHAREGPT, "feedback": "help", "_id": "identity_9"},
        {"conversations": SHAREGPT[1:], "system": "Be kind.", "feedback": "help"},
        {"conversations": SHAREGPT, "system": "", "feedback": "help"},
        {"messages": CHAT[:3], "user_prompt": "What now?", "response": "Nothing!", "feedback": "help"},
        WHOLE.model_dump(mode="json"),
    ],
)
def test_a_conversation_becomes_system_prompt_earlier_turns_question_and_answer(sample: dict[str, object]) -> None:
    assert one(sample) == WHOLE


TOOLS: list[dict[str, object]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
    {"role": "assistant", "content": "It rains!!"},
]


def test_tool_calls_need_the_recorded_prompt() -> None:
    sample: dict[str, object] = {"messages": TOOLS, "tools": [{"type": "function"}], "feedback": "calmer"}
    found = one(sample | {"prompt_token_ids": [1, 2, 3]})
    assert (found.user_prompt, found.response, found.prompt_token_ids) == ("Weather?", "It rains!!", [1, 2, 3])
    error = refusal(json.dumps([sample]).encode())
    assert error.place == "samples[0].messages[1]"
    assert "prompt_token_ids" in error.message


MESSAGES_REFUSED: list[tuple[str, dict[str, object], str, str]] = [
    ("without feedback", {"messages": CHAT}, "feedback", "beside messages"),
    ("ShareGPT without feedback", {"conversations": SHAREGPT}, "feedback", "beside conversations"),
    ("no answer", {"messages": CHAT[:-1], "feedback": "f"}, "messages", "must end with the"),
    ("no question", {"messages": CHAT[2:3], "feedback": "f"}, "messages", "user's turn right before"),
    ("no turn", {"messages": [], "feedback": "f"}, "messages", "must end with the"),
    ("a text", {"messages": "hi", "feedback": "f"}, "messages", "list of turns"),
    ("a turn that is a text", {"messages": ["hi"], "feedback": "f"}, "messages[0]", "a turn is an object"),
    (
        "an unknown role",
        {"messages": [{"role": "x", "content": "y"}], "feedback": "f"},
        "messages[0].role",
        "no role",
    ),
    ("a late system turn", {"messages": [*CHAT[1:], CHAT[0]], "feedback": "f"}, "messages", "not the first"),
    ("two system prompts", {"messages": CHAT, "system_prompt": "x", "feedback": "f"}, "system_prompt", "differs"),
    ("earlier turns with the question", GOOD | {"messages": CHAT[1:2]}, "messages", "turns before it"),
    (
        "earlier turns with question and answer",
        GOOD | {"messages": CHAT[1:3], "user_prompt": "Hello", "response": "Good day."},
        "messages",
        "turns before it",
    ),
    ("both formats", {"messages": CHAT, "conversations": SHAREGPT, "feedback": "f"}, "conversations", "one of them"),
    ("both with a question", GOOD | {"conversations": SHAREGPT}, "conversations", "beside user_prompt"),
    ("an empty turn", {"messages": [{"role": "user"}, CHAT[4]], "feedback": "f"}, "messages[0].content", "empty"),
    (
        "a picture",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, CHAT[4]], "feedback": "f"},
        "messages[0].content[0]",
        "no text",
    ),
    (
        "reasoning apart",
        {"messages": [CHAT[1], {**CHAT[2], "reasoning_content": "hm"}], "feedback": "f"},
        "messages[1]",
        "reasoning",
    ),
    ("tools without a recorded prompt", {"messages": CHAT, "tools": [1], "feedback": "f"}, "", "tool definitions"),
]


@pytest.mark.parametrize(
    ("sample", "field", "said"), [each[1:] for each in MESSAGES_REFUSED], ids=[each[0] for each in MESSAGES_REFUSED]
)
def test_a_conversation_that_is_no_sample_is_refused_with_what_is_meant(
    sample: dict[str, object], field: str, said: str
) -> None:
    error = refusal(json.dumps([sample]).encode())
    assert (error.index, error.field) == (0, field)
    assert said in error.message


@pytest.mark.parametrize(
    ("changes", "place", "said"),
    [
        ({"response": ""}, "samples[3].response", "is empty"),
        ({"response": " \n"}, "samples[3].response", "is empty"),
        ({"feedback": ...}, "samples[3].feedback", "is missing"),
        ({"feedback": None}, "samples[3].feedback", "is missing"),
        ({"feedback": float("nan")}, "samples[3].feedback", "is missing"),
        ({"feedback": "  "}, "samples[3].feedback", "is empty"),
        ({"feedback": "", "correction": ""}, "samples[3].feedback", "feedback or correction (the better answer)"),
        ({"feedback": " ", "correction": "Ho!"}, "samples[3].feedback", "is empty"),
        ({"correction": "\u200b"}, "samples[3].correction", "nothing that can be seen"),
        ({"correction": 5}, "samples[3].correction", "a number and must be a text"),
        ({"correction": "a\0b"}, "samples[3].correction", "NUL"),
        ({"version": -1}, "samples[3].version", "is negative"),
        ({"version": "7"}, "samples[3].version", "a text and must be a whole number"),
        ({"version": 1.5}, "samples[3].version", "a fraction"),
        ({"feedback": "\u200b\u200d\u2060"}, "samples[3].feedback", "nothing that can be seen"),
        ({"feedback": "\ufe0f\u3164\u2800\u00a0"}, "samples[3].feedback", "nothing that can be seen"),
        ({"feedback": True}, "samples[3].feedback", "true or false and must be a text; a thumb"),
        ({"feedback": 4}, "samples[3].feedback", "a number and must be a text; a thumb or a score"),
        ({"feedback": ["a", "b"]}, "samples[3].feedback", "a list and must be a text"),
        ({"feedback": {"0": "a"}}, "samples[3].feedback", 'orient="records"'),
        ({"user_prompt": ""}, "samples[3].user_prompt", "is empty"),
        ({"user_prompt": 7}, "samples[3].user_prompt", "wrong type"),
        ({"user_prompt": ..., "prompt": "x"}, "samples[3].user_prompt", "what the user wrote"),
        ({"prompt": [{"role": "user", "content": "x"}]}, "samples[3].prompt", "given as messages"),
        ({"user_prompt": "a\0b"}, "samples[3].user_prompt", "NUL"),
        ({"response_logprobs": [-0.5]}, "samples[3].response_logprobs", "1 values for 2 response_token_ids"),
        ({"response_token_ids": ...}, "samples[3].response_logprobs", "without response_token_ids"),
        ({"response_logprobs": [-0.5, float("nan")]}, "samples[3].response_logprobs[1]", "NaN"),
        ({"response_logprobs": [float("-inf"), -1.0]}, "samples[3].response_logprobs[0]", "infinite"),
        ({"response_logprobs": [-0.5, 0.5]}, "samples[3].response_logprobs[1]", "above 0"),
        ({"response_logprobs": [-0.5, -9999.0]}, "samples[3].response_logprobs[1]", "vLLM writes"),
        ({"response_logprobs": [-0.5, None]}, "samples[3].response_logprobs[1]", "it is null"),
        ({"response_logprobs": [-0.5, -(10**400)]}, "samples[3].response_logprobs[1]", "infinite"),
        ({"response_token_ids": [1, "2"]}, "samples[3].response_token_ids[1]", "wrong type"),
        ({"response_token_ids": [1, True]}, "samples[3].response_token_ids[1]", "wrong type"),
        ({"response_token_ids": [1, 2.5]}, "samples[3].response_token_ids[1]", "a fraction"),
        ({"response_token_ids": [1, float("inf")]}, "samples[3].response_token_ids[1]", "wrong type"),
        ({"response_token_ids": "[1, 2]"}, "samples[3].response_token_ids", "a list of numbers"),
        ({"a secret": 1}, "samples[3]", "not known; fields are user_prompt"),
        ({"userPrompt": "x"}, "samples[3]", "did you mean user_prompt?"),
        ({"feedbak": "x"}, "samples[3]", "did you mean feedback?"),
        ({"output": "x"}, "samples[3]", "did you mean response?"),
        ({"thumbs": True}, "samples[3]", "did you mean feedback?"),
        ({"chosen": "x"}, "samples[3]", "did you mean correction?"),
        ({"response": "\ud800"}, "samples[3].response", "surrogate"),
    ],
)
def test_a_wrong_sample_is_named_with_its_field(changes: dict[str, object], place: str, said: str) -> None:
    error = refusal(batch(**changes))
    assert error.place == place
    assert said in error.message
    assert "secret" not in error.message


def test_every_wrong_sample_is_named_and_the_status_has_the_first_fifty() -> None:
    empty = GOOD | {"feedback": " "}
    with pytest.raises(InvalidSamplesError) as caught:
        read_document(json.dumps([GOOD, empty, GOOD, 7, *[empty] * 60]).encode())
    assert str(caught.value).startswith("samples[1].feedback: is empty")
    assert str(caught.value).endswith("(62 samples are wrong)")
    named = caught.value.named
    assert [each.index for each in named] == [1, 3, *range(4, 52)]
    assert named[0].message.startswith("feedback: is empty")
    assert named[1].message.startswith("sample: must be a JSON object")


def test_a_document_that_can_t_be_read_names_no_sample() -> None:
    error = error_of(lambda: read_document(b"["))
    assert error is not None
    assert error.named == []


def test_a_field_that_stands_twice_is_refused_since_one_of_both_would_be_lost() -> None:
    error = refusal(b'[{"user_prompt":"a","response":"b","feedback":"c","feedback":"d"}]')
    assert error.place == "samples[0]"
    assert "twice" in error.message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "there are none"),
        (b" \n", "there are none"),
        (b"[]", "there are none"),
        (b'{"samples": []}', "there are none"),
        (b'{"samples": {}}', "must be a JSON list"),
        (b'{"samples": [1], "training": {}}', "spec.training"),
        (b"7", "must be a JSON list"),
        (b"[1]\n[2]", "several JSON lists"),
        (b"[1]", "must be a JSON object"),
        (b"[null]", "must be a JSON object"),
        (b"[" * 100_000, "nested too deep"),
        (b"[" + b"9" * 5000 + b"]", "a number too long"),
        (b'[\n{"a": 1},\n]', "not JSON at line 3, column 1 (a comma before the closing bracket"),
        (b'[{"user_prompt": "a",}]', "not JSON at line 1, column 22 (a comma before the closing bracket"),
        (b'{"user_prompt": "a"}\n{"user_prompt": a}', "not JSON at line 2, column 17"),
        (b"[{'user_prompt': 'a'}]", "double quotes"),
        (b'[{"system_prompt": None}]', "a Python literal"),
        (b'[{"user_prompt": "a', "ends too early"),
        (b"user_prompt,response,feedback\na,b,c", "not JSON at line 1, column 1"),
        ("[{'x': 'ß'}]".encode("latin-1"), "not UTF-8 text (line 1, byte 8)"),
        (json.dumps(TWO, ensure_ascii=False).encode("gb18030"), "iconv"),
        (b"\xff\xfe[\x00\x00", "not UTF-16"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    ],
)
def test_what_is_no_document_of_samples_is_refused_with_its_place_and_the_remedy(data: bytes, said: str) -> None:
    assert said in str(refusal(data))


FIELDS = [*DistillBatchItem.model_fields, "conversations"]
MARK = "qqzx"
TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=20).map(lambda text: f"{MARK}{text}{MARK}")
VALUES = st.recursive(
    TEXTS | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS | st.sampled_from(["role", "content", "from", "value"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def error_of(read: Callable[[], object]) -> InvalidSamplesError | None:
    try:
        read()
    except InvalidSamplesError as error:
        return error
    return None


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS) | TEXTS, VALUES, max_size=6), max_size=3))
def test_no_message_about_any_document_shows_its_text(document: list[dict[str, object]]) -> None:
    error = error_of(lambda: read_document(json.dumps(document).encode()))
    if error is None:
        return
    assert MARK not in str(error)
    for fault in error.faults:
        assert MARK not in str(fault)
        assert fault.__cause__ is None
        assert fault.__suppress_context__ or fault.__context__ is None


@given(TEXTS)
def test_no_message_about_broken_json_shows_its_text(text: str) -> None:
    assert MARK not in str(refusal(f'[{{"response": "{MARK}", {text}'.encode()))


@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_read_or_refused(data: bytes) -> None:
    error_of(lambda: read_document(data))


VISIBLE = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1).map("a".__add__)
TURNS = st.lists(
    st.tuples(VISIBLE, VISIBLE).map(
        lambda both: [ChatTurn(role=U, content=both[0]), ChatTurn(role=A, content=both[1])]
    ),
    max_size=2,
).map(lambda pairs: [turn for pair in pairs for turn in pair])
SAMPLES = st.builds(
    DistillBatchItem,
    user_prompt=VISIBLE.map("?".__add__),
    response=VISIBLE,
    feedback=VISIBLE,
    system_prompt=VISIBLE | st.just(""),
    messages=TURNS,
    response_token_ids=st.lists(st.integers(0, 10**6), min_size=1, max_size=4),
    prompt=st.just("") | VISIBLE,
    correction=st.just("") | VISIBLE,
    version=st.none() | st.integers(0, 10**6),
    id=st.just("") | st.from_regex(r"\A[a-z0-9][A-Za-z0-9._-]{0,63}\Z"),
)


@given(st.lists(SAMPLES, min_size=1, max_size=3))
def test_what_the_operator_writes_is_read_back_the_same(samples: list[DistillBatchItem]) -> None:
    dumped = [sample.model_dump(mode="json", exclude_defaults=True) for sample in samples]
    assert read_document(json.dumps(dumped).encode()) == samples
