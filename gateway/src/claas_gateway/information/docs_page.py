"""The page /docs: the OpenAPI document for people, without scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import cast

from pydantic import JsonValue

from claas_gateway.information.openapi import METHODS

_Object = Mapping[str, JsonValue]


def docs_page(document: _Object) -> str:
    """The routes as HTML."""
    info = cast(_Object, document["info"])
    title, about = escape(str(info["title"])), escape(str(info.get("description", "")))
    paths = cast(Mapping[str, Mapping[str, _Object]], document["paths"])
    operations = "\n".join(
        _operation(method, path, operation)
        for path, methods in sorted(paths.items())
        for method, operation in methods.items()
        if method in METHODS
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{about}</p>
<p>For programs: <a href="/openapi.json">/openapi.json</a></p>
{operations}
</main>
</body>
</html>
"""


def _operation(method: str, path: str, operation: _Object) -> str:
    told = escape(str(operation.get("description") or operation.get("summary") or ""))
    return f"<h2><code>{method.upper()} {escape(path)}</code></h2>\n<p>{told}</p>\n{_list(_parts(operation))}"


def _parts(operation: _Object) -> Iterator[str]:
    for parameter in cast(list[_Object], operation.get("parameters") or []):
        needed = ", required" if parameter.get("required") else ""
        told = escape(str(parameter.get("description", "")))
        yield f"<code>{escape(str(parameter['name']))}</code> ({escape(str(parameter['in']))}{needed}) {told}"
    body = cast(_Object, operation.get("requestBody") or {})
    for kind, content in cast(Mapping[str, _Object], body.get("content") or {}).items():
        yield f"Body: {escape(kind)}, {_shape(content)}"
    for status, answer in cast(Mapping[str, _Object], operation.get("responses") or {}).items():
        kinds = cast(Mapping[str, _Object], answer.get("content") or {})
        shapes = "".join(f"; {escape(kind)}, {_shape(content)}" for kind, content in kinds.items())
        yield f"{escape(status)}: {escape(str(answer.get('description', '')))}{shapes}"


def _shape(content: _Object) -> str:
    reference = cast(_Object, content.get("schema") or {}).get("$ref")
    return f"<code>{escape(str(reference).rpartition('/')[2])}</code>" if reference else "a value"


def _list(parts: Iterator[str]) -> str:
    items = "".join(f"<li>{part}</li>" for part in parts)
    return f"<ul>{items}</ul>" if items else ""
