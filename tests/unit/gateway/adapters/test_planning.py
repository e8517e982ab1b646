"""What an initialisation does, as far as it is decided without the cluster."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from claas_crds.base import OBJECT_NAME
from claas_gateway.access.callers import EVERYTHING, Caller
from claas_gateway.adapters.models import LoraInitRequest
from claas_gateway.adapters.naming import object_name
from claas_gateway.adapters.planning import find_made, new_manifest, permit, yields_to
from claas_gateway.adapters.template import parse_template, read_template
from claas_gateway.directory.models import Adapter
from claas_gateway.errors import Conflicting, NotPermitted, SettingsError
from claas_kube.objects.resources import AdapterObject

_SEGMENTS = st.text("aA1-._", min_size=1, max_size=30).filter(lambda segment: segment[0].isalnum())
IDS = st.lists(_SEGMENTS, min_size=1, max_size=6).map("/".join)
SPEC: dict[str, object] = {
    "model": {"name": "base", "source": {"hub": {"repository": "Qwen/Qwen3-8B"}}},
    "serving": {"deploymentRef": {"name": "vllm"}},
    "storage": {"claimName": "adapters"},
    "lora": {"targetModules": ["q_proj"]},
}
TEMPLATE = parse_template({"namespace": "team", "spec": SPEC})


def request(lora_id: str = "acme/tone", **fields: object) -> LoraInitRequest:
    return LoraInitRequest.model_validate({"lora_id": lora_id, **fields})


def made(lora_id: str = "acme/tone", second: int = 0, **fields: object) -> Adapter:
    """The adapter that an earlier request has made."""
    manifest = new_manifest(TEMPLATE, request(lora_id, **fields), "a-folder")
    found = AdapterObject.model_validate(manifest)
    created = datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)
    metadata = found.metadata.model_copy(update={"uid": f"uid-of-{lora_id}", "creation_timestamp": created})
    return Adapter(found.model_copy(update={"metadata": metadata}))


@given(IDS)
def test_every_identifier_has_a_name_that_kubernetes_takes(lora_id: str) -> None:
    name = object_name(lora_id)
    assert re.match(OBJECT_NAME, name)
    assert len(name) <= 50
    assert object_name(lora_id) == name


@given(IDS, IDS)
def test_two_identifiers_never_have_one_name(one: str, other: str) -> None:
    # A name with a hash is an identifier too, and must not be the name of what it was made from.
    for given_id in (other, object_name(one), one.lower(), one.replace("/", "-")):
        assert given_id == one or object_name(given_id) != object_name(one)


@pytest.mark.parametrize(
    ("lora_id", "name"), [("tone", "tone"), ("acme/Tone.v1", "acme-tone-v1-"), ("7b", "a-7b-"), ("a" * 60, "a" * 39)]
)
def test_a_name_can_be_read(lora_id: str, name: str) -> None:
    assert object_name(lora_id).startswith(name)


def test_what_is_asked_for_is_in_the_resource() -> None:
    manifest = new_manifest(TEMPLATE, request(lora_r=16, lora_alpha=8, target_modules=["v_proj"]), "tone-1")
    adapter = AdapterObject.model_validate(manifest)
    assert (adapter.lora_id, adapter.served_name, adapter.metadata.namespace) == ("acme/tone", "acme-tone", "team")
    assert (adapter.spec.lora.rank, adapter.spec.lora.alpha) == (16, 8)
    assert adapter.spec.lora.target_modules == ["v_proj"]
    assert adapter.storage_path == "team/tone-1"


def test_what_is_left_out_comes_from_the_template_which_stays_as_it_is() -> None:
    adapter = AdapterObject.model_validate(new_manifest(TEMPLATE, request(), "tone-1"))
    assert adapter.spec.lora.target_modules == ["q_proj"]
    assert adapter.spec.lora.rank == 32
    assert parse_template({"namespace": "team", "spec": SPEC}).spec == TEMPLATE.spec


def test_an_adapter_goes_on_from_nothing_that_an_earlier_one_of_its_name_left() -> None:
    folders = [
        AdapterObject.model_validate(new_manifest(TEMPLATE, request(), one)).storage_path for one in ("a", "b")
    ]
    assert folders == ["team/a", "team/b"]


def test_the_same_request_finds_what_it_has_made() -> None:
    first = made()
    assert find_made(TEMPLATE, request(), [first]) is first
    assert find_made(TEMPLATE, request("acme/other"), [first]) is None


@pytest.mark.parametrize(
    "taken",
    [
        "acme/tone",  # the same identifier with another rank
        "acme-tone",  # the dashed one
        "acme/tone-init",
        "acme/tone-latest",
        "acme-tone-init",
    ],
)
def test_a_name_that_is_taken_is_a_conflict(taken: str) -> None:
    with pytest.raises(Conflicting, match="acme/tone"):
        find_made(TEMPLATE, request(lora_r=8), [made(taken)])
    if taken != "acme/tone":
        with pytest.raises(Conflicting):
            find_made(TEMPLATE, request(taken), [made()])


def test_the_base_model_s_name_is_taken() -> None:
    with pytest.raises(Conflicting, match="base model"):
        find_made(TEMPLATE, request("base"), [])


def test_an_adapter_that_somebody_else_made_is_a_conflict() -> None:
    mine = made()
    bare = mine.found.metadata.model_copy(update={"labels": {}})
    with pytest.raises(Conflicting):
        find_made(TEMPLATE, request(), [Adapter(mine.found.model_copy(update={"metadata": bare}))])


def test_of_two_that_did_not_see_each_other_exactly_one_yields() -> None:
    for seconds in ((0, 1), (1, 0), (0, 0)):
        one, other = made("acme/tone", seconds[0]), made("acme-tone", seconds[1])
        assert (yields_to(one, [one, other]) is None) != (yields_to(other, [one, other]) is None)


@pytest.mark.parametrize("base_model", ["base", "Qwen/Qwen3-8B", "org/at-the-service", None])
def test_the_template_s_base_model_is_allowed_by_all_its_names(base_model: str | None) -> None:
    engine = {"engine": {"tinker": {"baseModel": "org/at-the-service"}}, "serving": {"tinkerProxy": {}}}
    template = parse_template({"namespace": "team", "spec": {**SPEC, **engine}})
    permit(EVERYTHING, template, request(base_model=base_model))


@pytest.mark.parametrize(
    ("caller", "base_model"),
    [
        (EVERYTHING, "meta/other"),
        (Caller("key", "team", "tone"), None),
        (Caller("key", "other"), None),
        (Caller("key", "other", "tone"), None),
    ],
)
def test_other_base_models_namespaces_and_keys_for_one_adapter_are_not(
    caller: Caller, base_model: str | None
) -> None:
    with pytest.raises(NotPermitted) as refused:
        permit(caller, TEMPLATE, request(base_model=base_model))
    assert "team" not in refused.value.detail


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"spec": None}, "spec is not"),
        ({"namespace": 3}, "namespace is not"),
        ({"more": 1}, "nothing else"),
        ({"spec": {**SPEC, "loraId": "x"}}, "spec.loraId"),
        ({"spec": {**SPEC, "serving": {"deploymentRef": {"name": "vllm"}, "servedName": "x"}}}, "servedName"),
        ({"spec": {**SPEC, "serving": {}}}, "exactly one of deploymentRef, tinkerProxy and modalApp"),
        ({"spec": {**SPEC, "storage": {}}}, "spec.storage.claimName"),
        ({"spec": {**SPEC, "lora": {"rank": 1000}}}, "spec.lora.rank"),
    ],
)
def test_a_wrong_template_stops_the_start_with_the_field_s_name(changed: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        parse_template({"namespace": "team", "spec": SPEC, **changed})


@pytest.mark.parametrize(("text", "said"), [("a: [", "not YAML"), (None, "can't be read"), ("- a", "namespace")])
def test_a_file_that_is_no_template_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "template.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=said) as refused:
        read_template(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("lora_id", ["", "/a", "a/", "a//b", "a b", "a@1", "../a", "a/../b", "ä", "a" * 191])
def test_what_is_no_identifier_is_refused(lora_id: str) -> None:
    with pytest.raises(ValidationError):
        request(lora_id)
