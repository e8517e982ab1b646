"""Metadata and label selectors, common to all objects."""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

from pydantic import JsonValue

from claas_crds.base import ResourceModel

Manifest: TypeAlias = dict[str, JsonValue]
"""A Kubernetes object on its way to or from the API server."""


class OwnerReference(ResourceModel):
    """metav1.OwnerReference."""

    kind: str
    name: str
    uid: str


class ObjectMeta(ResourceModel):
    """metav1.ObjectMeta, as far as it is read here."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[OwnerReference] = []


class ManagedFields(ResourceModel):
    """metav1.ManagedFieldsEntry, as far as it is read here."""

    time: datetime | None = None


class SecretMeta(ObjectMeta):
    """metav1.ObjectMeta of a Secret."""

    managed_fields: list[ManagedFields] = []

    @property
    def changed(self) -> datetime | None:
        """When it was last written."""
        times = [entry.time for entry in self.managed_fields] + [self.creation_timestamp]
        return max((time for time in times if time is not None), default=None)


class LabelRequirement(ResourceModel):
    """metav1.LabelSelectorRequirement."""

    key: str
    operator: str
    values: list[str] = []

    @property
    def text(self) -> str:
        """The requirement as a label selector's query has it."""
        match self.operator:
            case "Exists":
                return self.key
            case "DoesNotExist":
                return f"!{self.key}"
            case _:
                return f"{self.key} {self.operator.lower()} ({','.join(self.values)})"


class LabelSelector(ResourceModel):
    """metav1.LabelSelector."""

    match_labels: dict[str, str] = {}
    match_expressions: list[LabelRequirement] = []

    @property
    def text(self) -> str:
        """The selector as a list request's query has it."""
        labels = [f"{key}={value}" for key, value in sorted(self.match_labels.items())]
        return ",".join([*labels, *(requirement.text for requirement in self.match_expressions)])
