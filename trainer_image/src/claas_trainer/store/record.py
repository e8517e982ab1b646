"""`version.json`: what a version is and how it came to be."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from claas_crds.contract import PublishedVersion
from claas_crds.distill_job import SampleCounts, Timings
from claas_crds.lora_adapter import LoraSpec
from claas_crds.training import TrainingConfig

RECORD_FILE = "version.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"


class VersionRecord(BaseModel):
    """The content of `version.json`. A newer trainer may add fields; older ones ignore them."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, protected_namespaces=())

    number: int
    lora_id: str
    created: datetime
    parent: int | None = None
    job_namespace: str | None = None
    job_name: str | None = None
    job_uid: str | None = None
    attempt: int | None = None
    engine: str
    base_model: str
    lora: LoraSpec
    training: TrainingConfig | None = None
    seed: int | None = None
    """Seed of the step, or of the initial weights for version 0."""
    libraries: dict[str, str] = {}
    metrics: dict[str, float] = {}
    samples: SampleCounts = SampleCounts()
    timings: Timings = Timings()
    """As far as they are known when the version is published."""
    files: dict[str, str] = {}
    """sha256 of every other file, by name."""
    digest: str = ""
    """sha256 over the lines `<name> <sha256>` of `files`, sorted by name."""

    def published(self, path: str) -> PublishedVersion:
        """The version as the operator is told; `path` is below the volume's root."""
        return PublishedVersion(
            number=self.number,
            path=path,
            digest=self.digest,
            created=self.created,
            parent=self.parent,
            job_name=self.job_name,
            job_uid=self.job_uid,
            metrics=self.metrics,
        )
