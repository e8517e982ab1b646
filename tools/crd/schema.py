"""From pydantic models to structural OpenAPI v3 schemas, as the API server wants them in a CustomResourceDefinition.

Structural means: no `$ref`, no `anyOf` for optional fields, a `type` everywhere, numeric bounds in OpenAPI 3.0
style (Kubernetes documentation, "Specifying a structural schema").
"""

from __future__ import annotations

from typing import TypeAlias, cast

from pydantic import BaseModel, JsonValue

Schema: TypeAlias = dict[str, JsonValue]

_DROPPED = frozenset({"title", "$defs", "additionalProperties", "propertyNames"})


def structural_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of a model, with descriptions from its docstrings and defaults from its fields.

    Items of lists get no defaults: the API server would write them into every item, so that an object in the cluster
    differs from its manifest for ever (tools compare lists as a whole), and is larger than what was sent.
    """
    raw = cast(Schema, model.model_json_schema(by_alias=True, mode="validation"))
    definitions = cast(dict[str, Schema], raw.get("$defs", {}))
    return _structural(raw, definitions)


def _structural(node: Schema, definitions: dict[str, Schema], *, with_defaults: bool = True) -> Schema:
    node = _resolved(node, definitions)
    schema: Schema = {key: value for key, value in node.items() if key not in _DROPPED}
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    for bound, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(schema.get(flag), int | float) and not isinstance(schema.get(flag), bool):
            schema[bound] = schema[flag]
            schema[flag] = True
    if "properties" in schema:
        properties = cast(dict[str, Schema], schema["properties"])
        schema["properties"] = {
            name: _structural(child, definitions, with_defaults=with_defaults) for name, child in properties.items()
        }
    if "items" in schema:
        schema["items"] = _structural(cast(Schema, schema["items"]), definitions, with_defaults=False)
    values = node.get("additionalProperties")
    if isinstance(values, dict):
        schema["additionalProperties"] = _structural(values, definitions, with_defaults=with_defaults)
    if schema.get("format") == "date-time":
        schema["type"] = "string"
    if isinstance(schema.get("description"), str):
        schema["description"] = " ".join(cast(str, schema["description"]).split())
    if "default" in schema:
        schema["default"] = _without_nulls(schema["default"])
        if schema["default"] is None or not with_defaults:
            del schema["default"]
    return dict(sorted(schema.items(), key=lambda item: (item[0] == "properties", item[0])))


def _without_nulls(default: JsonValue) -> JsonValue:
    """A default without its null members: the API server refuses null where a field is not nullable."""
    if isinstance(default, dict):
        return {key: _without_nulls(value) for key, value in default.items() if value is not None}
    return default


def _resolved(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`node` with its `$ref` inlined and `X | None` turned into X; what stands beside them wins."""
    if "$ref" in node:
        name = cast(str, node["$ref"]).rsplit("/", 1)[-1]
        beside: Schema = {key: value for key, value in node.items() if key != "$ref"}
        return _resolved({**definitions[name], **beside}, definitions)
    if "anyOf" in node:
        options = [option for option in cast(list[Schema], node["anyOf"]) if option.get("type") != "null"]
        beside = {key: value for key, value in node.items() if key != "anyOf"}
        if len(options) == 1:
            return _resolved({**options[0], **beside}, definitions)
        if all(option.keys() == {"required"} for option in options):
            return node  # Value validations, which the API server takes as they are.
        if {cast(str, option.get("type")) for option in options} == {"string", "integer"}:
            return {**beside, "x-kubernetes-int-or-string": True}
        raise ValueError(f"a field of a resource can't be one of several types: {options}")
    return node
