"""A container's environment as far as its spec shows it, and Kubernetes' `$(NAME)` in its fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from claas_kube.objects.meta import ObjectMeta
from claas_kube.objects.pods import Container, ContainerVariable, Pod
from claas_operator.plan.server.shell_words import UNKNOWN

_REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")
_LABELLED = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


@dataclass(frozen=True)
class Environment:
    """Variables by name; `UNKNOWN` for those with an unknown value. `opened`: a whole ConfigMap or Secret may set
    others."""

    values: Mapping[str, str]
    opened: bool = False


def environment_of(container: Container | None, pod: Pod | None = None, namespace: str | None = None) -> Environment:
    """The environment of a container; of one pod's, or of a template in a namespace."""
    values: dict[str, str] = {}
    opened = container is not None and bool(container.env_from)
    for variable in container.env if container is not None else ():
        if variable.value_from is None:
            values[variable.name] = expanded(variable.value, Environment(values, opened))
        else:
            values[variable.name] = _from_field(variable, pod, namespace)
    return Environment(values, opened)


def expanded(text: str, environment: Environment) -> str:
    """A field with each `$(NAME)` replaced, as the kubelet does: `$$` is a dollar sign, and a name that is not set
    stays as it is written."""

    def replace(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        found = environment.values.get(match[2])
        if found is not None:
            return found
        return UNKNOWN if environment.opened and match[2] else match[0]

    return _REFERENCE.sub(replace, text)


def unknown_references(text: str, environment: Environment) -> tuple[str, ...]:
    """The names in a field's `$(NAME)` whose values are unknown."""
    names = [match[2] for match in _REFERENCE.finditer(text) if match[1] != "$"]
    return tuple(name for name in names if UNKNOWN in environment.values.get(name, UNKNOWN))


def _from_field(variable: ContainerVariable, pod: Pod | None, namespace: str | None) -> str:
    assert variable.value_from is not None
    field = variable.value_from.field_ref
    if field is None:
        return UNKNOWN
    path = field.field_path
    if pod is None:
        return namespace if path == "metadata.namespace" and namespace is not None else UNKNOWN
    return _field_of(pod, path)


def _field_of(pod: Pod, path: str) -> str:
    """A field of the pod itself, as the downward API gives it."""
    metadata: ObjectMeta = pod.metadata
    known = {
        "metadata.name": metadata.name,
        "metadata.namespace": metadata.namespace,
        "metadata.uid": metadata.uid,
        "spec.nodeName": pod.spec.node_name,
        "spec.serviceAccountName": pod.spec.service_account_name,
    }
    if path in known:
        return known[path] or UNKNOWN
    match = _LABELLED.fullmatch(path)
    if match is None:
        return UNKNOWN
    return (metadata.labels if match[1] == "labels" else metadata.annotations).get(match[2], "")
