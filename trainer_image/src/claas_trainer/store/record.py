"""`version.json`: the record of a version."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, model_validator

from claas_contract.engine import OWN_FILES, StateRef
from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.step import SampleCounts, Timings
from claas_crds.v1alpha1.training import TrainingConfig

RECORD_FILE = "version.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
OPTIMIZER_FILES = "optimizer"
"""Prefix of the names of files with the optimiser's state."""


class ForwardKind(StrEnum):
    """The forward that computed a step."""

    DECODER = "decoder"
    """The trainer's own, for decoders of the Llama family."""
    PEFT = "peft"
    """The generic one of transformers and PEFT, for all other models."""


class Provenance(BaseModel):
    """Provenance of a version: the inputs of its step, and how it was computed. With it, the settings, the parent and
    the samples a step can be taken again: by the local engine on a CPU like this one to the same bytes, elsewhere to
    the same figures but for rounding."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, protected_namespaces=())

    parent_digest: str
    """The parent version's `digest`."""
    samples_digest: str
    """sha256 over the samples' token ids, and their log-probabilities or the versions under which those were
    computed, independent of their order."""
    answered_by: dict[int, str] = {}
    """Digests of those versions, by number."""
    tokens: int | None = None
    """Tokens of all samples, prompts and responses; None in versions of older trainers."""


class LocalProvenance(Provenance):
    """Provenance from the local engine: adds the device, and the division of the step into pieces."""

    base_fingerprint: str
    """Identifies the base model: `tensors:` with a digest of the weights' names, shapes and sampled bytes, or
    `headers:` with a digest of the configuration and the files' headers."""
    forward: ForwardKind
    device: str
    """The GPU's name, or the CPU's instruction set and the number of threads."""
    compute_dtype: str
    """dtype of the base weights and of the matrix products."""
    micro_batch_tokens: int
    """Largest number of tokens in a forward pass; a single longer sample may exceed it."""
    tile_rows: int
    """Number of tokens whose logits existed at once."""
    checkpointed_layers: int = 0
    """Number of layers that were recomputed to save memory."""
    serving_residue_bytes: int | None = None
    """GPU memory in use by others while serving slept; the next step plans with it. None on a CPU."""


class ModalProvenance(LocalProvenance):
    """Provenance from the local engine in a container of the Modal platform. With the same base model, device and
    settings that engine makes the same bytes elsewhere."""

    modal_call: str
    """The function call that was answered with the step. One that found it on the Volume did not compute it."""
    modal_container: str
    """The container that computed the step."""
    modal_gpu: str
    """The types of GPU that the app was deployed with, as Modal calls them; `none` for the CPU."""


class RemoteProvenance(Provenance):
    """Provenance from an engine whose service computes: it does not tell how."""

    run: str
    """The service's training run that took the step."""
    service_model: str
    """The service's name of the base model."""
    optimizer_restored: bool | None = None
    """Whether the service restored the parent's optimiser state; None if that was not seen, or it had none."""


_OWN_FIELDS = {
    engine: own.model_fields.keys() - common.model_fields.keys()
    for engine, own, common in (
        ("modal", ModalProvenance, LocalProvenance),
        ("local", LocalProvenance, Provenance),
        ("remote", RemoteProvenance, Provenance),
    )
}


def _engine_of(step: object) -> str:
    """Which of the four a `step` is: any field of an engine's own tells."""
    fields = step if isinstance(step, Mapping) else getattr(step, "__dict__", {})
    return next((engine for engine, own in _OWN_FIELDS.items() if own & fields.keys()), "any")


StepProvenance = Annotated[
    Annotated[ModalProvenance, Tag("modal")]
    | Annotated[LocalProvenance, Tag("local")]
    | Annotated[RemoteProvenance, Tag("remote")]
    | Annotated[Provenance, Tag("any")],
    Discriminator(_engine_of),
]


class VersionRecord(BaseModel):
    """The content of `version.json`. A newer trainer may add fields; older ones ignore them."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, protected_namespaces=())

    number: int
    lora_id: str
    created: datetime
    parent: int | None = None
    jobs: list[JobIdentity] = []
    """The DistillJobs that the step was taken for; none for an initial version. Release 0.1.0 recorded one."""
    feedback_ids: list[str] = []
    """The identifiers of the samples that have one, in the batch's order."""
    engine: str
    base_model: str
    base_config: str = ""
    """sha256 of the base model's configuration; for version 0 only, as later versions have
    `step.base_fingerprint`."""
    lora: LoraSpec
    training: TrainingConfig | None = None
    seed: int | None = None
    """Seed of the step, or of the initial weights for version 0."""
    step: StepProvenance | None = None
    """Its provenance; None for version 0 and for versions of older trainers."""
    state: StateRef | None = None
    """Where its optimiser state is. None without one, as for version 0, and in versions of trainers that did not
    record it; `optimizer_state` tells these apart."""
    weights: str | None = None
    """Address of its weights in the engine's service; None if they are in its folder alone."""
    libraries: dict[str, str] = {}
    metrics: dict[str, float] = {}
    samples: SampleCounts = SampleCounts()
    timings: Timings = Timings()
    """The timings known when the version is published."""
    files: dict[str, str] = {}
    """sha256 of every other file, by name."""
    digest: str = ""
    """sha256 over the lines `<name> <sha256>` of `files`, sorted by name."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_job(cls, data: object) -> object:
        if not isinstance(data, dict) or data.get("job_uid") is None:
            return data
        job = {name: data.get(f"job_{name}") for name in ("namespace", "name", "uid")}
        return {**data, "jobs": [{**job, "attempt": data.get("attempt")}]}

    @property
    def local(self) -> LocalProvenance | None:
        """Its provenance if the local engine computed it, in the trainer's pod or elsewhere; else None."""
        return self.step if isinstance(self.step, LocalProvenance) else None

    @property
    def optimizer_state(self) -> StateRef | None:
        """Where its optimiser state is; None when it has none. Trainers that did not record it had the local engine
        alone."""
        own = any(name.startswith(OPTIMIZER_FILES) for name in self.files)
        return self.state or (OWN_FILES if own else None)
