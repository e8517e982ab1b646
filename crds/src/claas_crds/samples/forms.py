"""From a JSON value to a sample: the form of `DistillBatchItem`, OpenAI's `messages`, ShareGPT's `conversations`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from difflib import get_close_matches

from claas_crds.samples.checks import NEEDS, TEXT_FIELDS, SampleError, check_sample
from claas_crds.samples.turns import RECORDED_REMEDY, read_dialogue, read_earlier
from claas_crds.v1alpha1.training import SAMPLE_ID_PATTERN, DistillBatchItem

_TOKEN_FIELDS = ("prompt_token_ids", "response_token_ids")
_LOGPROBS = "response_logprobs"
_SHAREGPT = "conversations"
_FIELDS = (*DistillBatchItem.model_fields, _SHAREGPT)
_WITHOUT_EFFECT = frozenset(
    {"_id", "conversation_id", "created", "created_at", "index", "metadata", "model", "request_id", "sample_id"}
    | {"source", "tags", "timestamp", "uid", "uuid"}
)
"""Fields that exports add to a sample, which are ignored. Any other unknown field may have been meant for
something."""
_TOOL_DEFINITIONS = frozenset({"tools", "functions"})
_OTHER_NAMES = {
    "user_prompt": {"question", "instruction", "input", "query", "user", "human", "request"},
    "response": {"answer", "output", "completion", "assistant", "reply", "rejected", "generated_text"},
    "feedback": {"comment", "critique", "rating", "score", "label", "thumbs", "thumb", "hindsight"},
    "correction": {"chosen", "better_answer", "corrected", "expected", "ideal", "preferred", "reference", "solution"},
    "system_prompt": {"system"},
    "prompt_token_ids": {"prompt_ids", "input_ids"},
    "response_token_ids": {"token_ids", "output_ids", "output_token_ids", "completion_token_ids"},
    "response_logprobs": {"logprobs", "token_logprobs", "logprob"},
    "messages": {"history", "dialog", "dialogue", "turns", "chat", "conversation"},
}
_FORMS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}


class RepeatedFields(dict[str, object]):
    """A JSON object with a repeated field, one of which would be lost."""


def read_sample(index: int, value: object) -> DistillBatchItem:
    """The sample of one JSON object, checked. Raises SampleError."""
    if not isinstance(value, dict):
        raise SampleError(index, "", f"must be a JSON object; fields are {', '.join(DistillBatchItem.model_fields)}")
    if isinstance(value, RepeatedFields):
        raise SampleError(index, "", "names a field twice; give each once")
    given = {name: each for name, each in value.items() if not _is_absent(each) and name not in _WITHOUT_EFFECT}
    given["id"] = _identifier(given.get("id"))
    given = _own_form(index, given)
    _check_names(index, given)
    _check_needed(index, given)
    sample = DistillBatchItem.model_validate({name: _typed(index, name, each) for name, each in given.items()})
    check_sample(index, sample)
    return sample


def _is_absent(value: object) -> bool:
    """null, and the NaN that pandas writes for a cell without a value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _own_form(index: int, given: Mapping[str, object]) -> dict[str, object]:
    """The fields of a sample, with a conversation of either format split into them."""
    own = dict(given)
    fields = [name for name in ("messages", _SHAREGPT) if name in own]
    if len(fields) > 1:
        raise SampleError(index, _SHAREGPT, "is given beside messages; give one of them")
    if not fields:
        return own
    field = fields[0]
    turns = own.pop(field)
    recorded = bool(own.get("prompt") or own.get("prompt_token_ids"))
    if field == _SHAREGPT and "system" in own:
        own.setdefault("system_prompt", own.pop("system"))
    if recorded:
        # The recorded prompt contains them.
        own = {name: each for name, each in own.items() if name not in _TOOL_DEFINITIONS}
    if "user_prompt" in own and field == "messages":
        said_last = (own["user_prompt"], own.get("response"))
        system, own["messages"] = read_earlier(index, turns, said_last, recorded=recorded)
    else:
        if "user_prompt" in own:
            raise SampleError(index, field, "is given beside user_prompt; earlier turns go to messages")
        dialogue = read_dialogue(index, field, turns, answered="response" in own, recorded=recorded)
        system = dialogue.system_prompt
        own |= {"messages": list(dialogue.earlier), "user_prompt": dialogue.user_prompt}
        if dialogue.response is not None:
            own["response"] = dialogue.response
        if "feedback" not in own and "correction" not in own:
            raise SampleError(
                index, "feedback", f"is missing; give it beside {field}, as a text about the answer that ends them"
            )
    if system:
        if own.get("system_prompt", "") not in ("", system):
            raise SampleError(index, "system_prompt", f"differs from the system turn of {field}; give one of them")
        own["system_prompt"] = system
    return own


def _check_names(index: int, given: Mapping[str, object]) -> None:
    """Refuses unknown fields. Their names may be private, so the message only suggests known names."""
    unknown = sorted(given.keys() - set(DistillBatchItem.model_fields))
    if not unknown:
        return
    if unknown[0] in _TOOL_DEFINITIONS:
        raise SampleError(index, "", f"has tool definitions, which belong to the prompt; {RECORDED_REMEDY}")
    meant = _meant(unknown[0])
    hint = f": did you mean {meant}?" if meant else ""
    raise SampleError(index, "", f"has a field that is not known{hint}; fields are {', '.join(_FIELDS)}")


def _meant(name: str) -> str | None:
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_").replace(" ", "_")
    for field, others in _OTHER_NAMES.items():
        if plain in others:
            return field
    return next(iter(get_close_matches(plain, _FIELDS, n=1, cutoff=0.75)), None)


def _check_needed(index: int, given: Mapping[str, object]) -> None:
    for field in ("user_prompt", "response", "feedback"):
        if field in given or (field == "feedback" and "correction" in given):
            continue
        hint = ""
        if field == "user_prompt" and "prompt" in given:
            hint = "; prompt is the prompt with the chat template applied, user_prompt what the user wrote"
        raise SampleError(index, field, f"is missing; {NEEDS}, or messages{hint}")


def _typed(index: int, field: str, value: object) -> object:
    if field in TEXT_FIELDS:
        return _text(index, field, value)
    if field == "version":
        return _version(index, value)
    if field in _TOKEN_FIELDS:
        return [
            _whole(index, f"{field}[{place}]", each, "a token id")
            for place, each in enumerate(_list(index, field, value))
        ]
    if field == _LOGPROBS:
        return [_number(index, f"{field}[{place}]", each) for place, each in enumerate(_list(index, field, value))]
    return value


def _text(index: int, field: str, value: object) -> str:
    if isinstance(value, str):
        return value
    hint = ""
    if field == "feedback" and isinstance(value, bool | int | float):
        hint = "; a thumb or a score says nothing to learn from: write what is to be better, as to a person"
    elif field == "prompt" and isinstance(value, list):
        hint = "; a list of turns is given as messages"
    elif isinstance(value, dict):
        hint = '; pandas writes a list of samples with to_json(orient="records")'
    raise SampleError(index, field, f"has the wrong type: it is {_form(value)} and must be a text{hint}")


def _list(index: int, field: str, value: object) -> list[object]:
    if isinstance(value, list):
        return value
    raise SampleError(index, field, f"has the wrong type: it is {_form(value)} and must be a list of numbers")


def _whole(index: int, place: str, value: object, meaning: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise SampleError(index, place, f"has the wrong type: it is {_form(value)} and must be a whole number, {meaning}")


def _version(index: int, value: object) -> int:
    version = _whole(index, "version", value, "the adapter's version that answered")
    if version < 0:
        raise SampleError(index, "version", "is negative; give the number of the adapter's version that answered")
    return version


def _identifier(value: object) -> str:
    """The sample's identifier. Exports have identifiers of any form; one that a version can't record has no
    effect."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return text if isinstance(text, str) and re.fullmatch(SAMPLE_ID_PATTERN, text) else ""


def _number(index: int, place: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    raise SampleError(index, place, f"has the wrong type: it is {_form(value)} and must be a log-probability")


def _form(value: object) -> str:
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else "a fraction" if not value.is_integer() else "a number"
    return "null" if value is None else _FORMS[dict if isinstance(value, dict) else type(value)]
