"""The generated schemas: structural, explained everywhere, and never stale."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import cast

import pytest
import yaml
from pydantic import BaseModel, JsonValue

from claas_crds.base import ResourceModel
from tests.cluster.paths import REPOSITORY_ROOT
from tools.crd.manifests import RESOURCES, custom_resource_definitions
from tools.crd.schema import Schema, structural_schema

DEFINITIONS = custom_resource_definitions()


def root_schema(definition: Schema) -> Schema:
    version = cast(list[Schema], cast(Schema, definition["spec"])["versions"])[0]
    return cast(Schema, cast(Schema, version["schema"])["openAPIV3Schema"])


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema node with its path; `properties` is a map of nodes, not a node."""
    yield path, schema
    for name, child in cast(dict[str, Schema], schema.get("properties", {})).items():
        yield from walk(child, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        element = schema.get(word)
        if isinstance(element, dict):
            yield from walk(element, f"{path}.{word}")


NODES = [(f"{name}{path}", node) for name, each in DEFINITIONS.items() for path, node in walk(root_schema(each))]


QUANTITIES = {
    f"loraadapters.claas.dev.spec.trainer.resources.{group}.additionalProperties" for group in ("limits", "requests")
}
"""No type of a structural schema takes both text and fractions, so these have none."""


def test_both_kinds_are_there() -> None:
    assert set(DEFINITIONS) == {"loraadapters.claas.dev", "distilljobs.claas.dev"}
    assert len(NODES) > 150


@pytest.mark.parametrize("word", ["$ref", "$defs", "anyOf", "oneOf", "allOf", "not", "title", "const", "examples"])
def test_no_node_has_a_word_that_a_structural_schema_may_not_have(word: str) -> None:
    assert [path for path, node in NODES if word in node and path not in {*QUANTITIES, TARGETS, ENGINE}] == []


TARGETS = "loraadapters.claas.dev.spec.lora.targetModules"
"""Text or a list, which is no type either."""
ENGINE = "loraadapters.claas.dev.spec.engine"
"""One engine with its settings, or a name, as release 0.1.0 had it."""


def test_every_node_has_a_type_or_is_one_of_those_that_no_type_is_for() -> None:
    untyped = {path for path, node in NODES if "type" not in node and not node.get("x-kubernetes-int-or-string")}
    assert untyped == {*QUANTITIES, TARGETS, ENGINE}


def test_a_quantity_is_text_of_that_form_or_a_number_and_nothing_else() -> None:
    for path, node in NODES:
        if path in QUANTITIES:
            assert node["x-kubernetes-preserve-unknown-fields"] is True
            assert node["minimum"] == 0
            assert node["not"] == {"enum": [True, False, [], {}]}
            assert (node["maxItems"], node["maxProperties"]) == (0, 0)
            for text, holds in (("4Gi", True), ("0.5", True), ("half", False), ("-1", False), ("4 Gi", False)):
                assert bool(re.match(str(node["pattern"]), text)) is holds


def test_bounds_are_written_as_openapi_3_0_has_them() -> None:
    for path, node in NODES:
        for flag, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if flag in node:
                assert node[flag] is True, path
                assert isinstance(node[bound], int | float), path


def test_every_field_is_explained() -> None:
    bare = [
        f"{path}.{name}"
        for path, node in NODES
        for name, child in cast(dict[str, Schema], node.get("properties", {})).items()
        if not str(child.get("description", "")).strip()
    ]
    assert [field for field in bare if not field.endswith(".dev.metadata")] == []


def test_no_default_holds_a_null() -> None:
    def has_null(value: JsonValue) -> bool:
        if isinstance(value, dict):
            return any(has_null(child) for child in value.values())
        return value is None

    assert [path for path, node in NODES if "default" in node and has_null(node["default"])] == []


def test_every_default_of_the_spec_is_one_that_the_model_would_give() -> None:
    for resource in RESOURCES:
        spec = cast(dict[str, Schema], root_schema(DEFINITIONS[resource.name])["properties"])["spec"]
        model = cast(type[BaseModel], resource.model.model_fields["spec"].annotation)
        for name, field in model.model_fields.items():
            default = field.get_default()
            if isinstance(default, ResourceModel) or default is None:
                continue
            schema = cast(dict[str, Schema], spec["properties"])[field.alias or name]
            if not field.is_required() and not isinstance(default, BaseModel):
                assert schema["default"] == default, name


def test_status_has_no_default_so_that_its_absence_can_be_seen() -> None:
    for name, definition in DEFINITIONS.items():
        assert "default" not in cast(dict[str, Schema], root_schema(definition)["properties"])["status"], name


def test_conditions_are_a_map_by_type_for_server_side_apply() -> None:
    for name, definition in DEFINITIONS.items():
        node = dict(walk(root_schema(definition)))[".status.conditions"]
        assert node["x-kubernetes-list-type"] == "map", name
        assert node["x-kubernetes-list-map-keys"] == ["type"]


def test_inline_samples_are_one_field_to_server_side_apply() -> None:
    node = dict(walk(root_schema(DEFINITIONS["distilljobs.claas.dev"])))[".spec.samples.inline"]
    assert node["x-kubernetes-list-type"] == "atomic"


def test_short_names_and_category_are_set() -> None:
    names = [cast(Schema, cast(Schema, each["spec"])["names"]) for each in DEFINITIONS.values()]
    assert [each["shortNames"] for each in names] == [["lad"], ["dj"]]
    assert [each["categories"] for each in names] == [["claas"], ["claas"]]


def test_a_field_of_two_types_is_refused_rather_than_guessed() -> None:
    class Wrong(ResourceModel):
        field: list[int] | bool

    with pytest.raises(ValueError, match="one of several types"):
        structural_schema(Wrong)


def test_what_is_generated_is_current() -> None:
    result = subprocess.run(
        [sys.executable, REPOSITORY_ROOT / "tools" / "generate.py", "--check"],
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_manifests_hold_no_anchors() -> None:
    for folder in ("crds/manifests", "helm/claas-operator/files/crds"):
        for name in DEFINITIONS:
            text = (REPOSITORY_ROOT / folder / f"{name}.yaml").read_text()
            tokens = yaml.scan(text)
            assert not any(isinstance(token, yaml.AnchorToken | yaml.AliasToken) for token in tokens), name


def pattern_of(definition: str, path: str) -> str:
    return str(dict(walk(root_schema(DEFINITIONS[definition])))[path]["pattern"])


@pytest.mark.parametrize(
    "path", ["2026/july.json", "Rückmeldungen/März 1.json", "反馈/样本.jsonl", ".hidden/a", "a..b"]
)
def test_a_path_may_have_spaces_and_any_script(path: str) -> None:
    for field in (".spec.samples.file.path", ".spec.storage.path", ".spec.model.source.persistentVolumeClaim.path"):
        definition = "distilljobs.claas.dev" if "samples" in field else "loraadapters.claas.dev"
        assert re.search(pattern_of(definition, field), path), field


@pytest.mark.parametrize("path", ["/a", "a/", "a//b", "..", "a/../b", "./a", "a/...", "a\nb", "a\x7f", "a\0"])
def test_a_path_leads_nowhere_else(path: str) -> None:
    assert not re.search(pattern_of("distilljobs.claas.dev", ".spec.samples.file.path"), path)


def test_items_of_lists_have_no_defaults_which_the_api_server_would_write_into_them() -> None:
    inside_items = [path for path, node in NODES if ".items" in path and "default" in node]
    assert inside_items == []
