"""The CustomResourceDefinitions, as plain data, made from the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from pydantic import BaseModel

from claas_crds import GROUP, VERSION
from claas_crds.v1alpha1 import distill_job, lora_adapter
from tools.crd.schema import Schema, structural_schema

CATEGORY = "claas"


@dataclass(frozen=True)
class PrintColumn:
    """A column of `kubectl get`; those of priority 1 show only with `-o wide`."""

    name: str
    json_path: str
    type: str = "string"
    priority: int = 0

    def as_data(self) -> Schema:
        """The column as it stands in the CRD."""
        column: Schema = {"name": self.name, "type": self.type, "jsonPath": self.json_path}
        return {**column, "priority": self.priority} if self.priority else column


@dataclass(frozen=True)
class ResourceDefinition:
    """One kind of resource and how `kubectl` shows it."""

    kind: str
    plural: str
    short_names: tuple[str, ...]
    model: type[BaseModel]
    columns: tuple[PrintColumn, ...]

    @property
    def name(self) -> str:
        """The CRD's object name."""
        return f"{self.plural}.{GROUP}"


def _condition(condition_type: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{condition_type}")].{field}'


RESOURCES = (
    ResourceDefinition(
        kind=lora_adapter.KIND,
        plural=lora_adapter.PLURAL,
        short_names=("lad",),
        model=lora_adapter.LoraAdapter,
        columns=(
            PrintColumn("Ready", _condition("Ready", "status")),
            PrintColumn("Reason", _condition("Ready", "reason")),
            PrintColumn("Version", ".status.servedVersion", "integer"),
            PrintColumn("Age", ".metadata.creationTimestamp", "date"),
            PrintColumn("Latest", ".status.latestVersion", "integer", 1),
            PrintColumn("Replicas", ".status.readyReplicas", priority=1),
            PrintColumn("Deployment", ".spec.serving.deploymentRef.name", priority=1),
            PrintColumn("Handover", ".status.handover", priority=1),
            PrintColumn("Job", ".status.currentJob", priority=1),
            PrintColumn("Message", _condition("Ready", "message"), priority=1),
        ),
    ),
    ResourceDefinition(
        kind=distill_job.KIND,
        plural=distill_job.PLURAL,
        short_names=("dj",),
        model=distill_job.DistillJob,
        columns=(
            PrintColumn("Adapter", ".spec.adapterRef.name"),
            PrintColumn("Phase", ".status.phase"),
            PrintColumn("Version", ".status.producedVersion", "integer"),
            PrintColumn("Age", ".metadata.creationTimestamp", "date"),
            PrintColumn("Loss", ".status.loss", priority=1),
            PrintColumn("Gap", ".status.servingGap", priority=1),
            PrintColumn("Attempts", ".status.attempts", "integer", 1),
            PrintColumn("Reason", ".status.reason", priority=1),
            PrintColumn("Message", ".status.message", priority=1),
        ),
    ),
)


def custom_resource_definition(resource: ResourceDefinition) -> Schema:
    """The CRD of one kind."""
    schema = structural_schema(resource.model)
    properties = cast(dict[str, Schema], schema["properties"])
    properties["status"].pop("default", None)
    schema["properties"] = {
        "apiVersion": {"type": "string", "description": "Version of the schema of this object."},
        "kind": {"type": "string", "description": "Kind of this object."},
        "metadata": {"type": "object"},
        **properties,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": resource.name},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": list(resource.short_names),
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [column.as_data() for column in resource.columns],
                }
            ],
        },
    }


def custom_resource_definitions() -> dict[str, Schema]:
    """All CRDs by object name."""
    return {resource.name: custom_resource_definition(resource) for resource in RESOURCES}
