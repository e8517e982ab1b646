"""What the trainer's pod and the deployed app say to each other: one document each way, as CBOR, so that neither side
unpickles what the other one sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from claas_contract.engine import DistillBatchRequestPayload
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.lora import LoraSpec
from claas_modal_client.addresses import VolumeAddress
from claas_trainer.store.record import LocalProvenance

PROTOCOL = 1
"""Changes when either side would misread the other one. Trainer and app are then of different releases."""
_SHA256 = r"^[0-9a-f]{64}$"
_NAME_DIGITS = 16


def _address(text: str) -> str:
    VolumeAddress.parse(text)
    return text


_Address = Annotated[str, AfterValidator(_address)]
"""A `VolumeAddress` as text."""


def adapter_folder(adapter_uid: str) -> str:
    """The folder of an adapter's versions on the Volume."""
    return f"adapters/{adapter_uid}"


class WireError(ValueError):
    """A document is not of this release. The message quotes no values."""


class _Document(BaseModel):
    """Part of a document; errors never quote what it holds."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, ser_json_inf_nan="constants")

    def document(self) -> dict[str, object]:
        """As it travels: text, numbers, bytes, lists and mappings alone."""
        return self.model_dump(mode="json")

    @classmethod
    def of(cls, document: object) -> Self:
        """From the document that arrived. Raises WireError."""
        told = document.get("protocol") if isinstance(document, Mapping) else None
        if told != PROTOCOL:
            raise WireError(f"{cls.__name__} of protocol {_shown(told)}; this release speaks {PROTOCOL}")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            places = [".".join(map(str, each["loc"])) or each["type"] for each in error.errors(include_input=False)]
            raise WireError(
                f"{cls.__name__}: {', '.join(sorted(set(places))[:3])}: not as this release sends it"
            ) from None


def _shown(protocol: object) -> str:
    return str(protocol) if isinstance(protocol, int) else "unknown"


class FolderRef(_Document):
    """A version in a folder of the Modal Volume."""

    number: int = Field(ge=0)
    """Its number."""
    address: _Address
    """The folder, with the digest of its manifest."""
    digest: str = Field(pattern=_SHA256)
    """The version's digest, as in version.json."""
    optimizer: bool = False
    """Whether the version has an optimiser state, which is then in the folder too."""
    provenance: LocalProvenance | None = None
    """How it was computed; None for version 0."""


class StepRequest(_Document):
    """One step on token ids. Everything of it decides the result, but for the folders' addresses and the name."""

    model_config = ConfigDict(extra="forbid")

    protocol: int = PROTOCOL
    digest: str = Field(default="", pattern=f"^$|{_SHA256}")
    """sha256 over all that decides the result; filled in when it is empty. Equal requests have equal results."""
    adapter_uid: str = Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]*$", max_length=128)
    """UID of the LoraAdapter: the folder of its versions on the Volume."""
    version: int = Field(ge=1)
    """Number of the version to make."""
    base_model: str
    """The base model that the app must have been deployed with: a repository on the hub."""
    lora: LoraSpec
    """Shape of the adapter."""
    payload: DistillBatchRequestPayload
    """Settings and samples."""
    parent: FolderRef
    """The version to start from."""
    earlier: tuple[FolderRef, ...] = ()
    """The other versions that samples name; of them the adapter alone is read."""

    @model_validator(mode="after")
    def _digested(self) -> Self:
        decisive = self.model_dump(
            mode="json",
            exclude={
                "digest": True,
                "payload": {"lora_id"},
                "parent": {"address", "provenance"},
                "earlier": {"__all__": {"address", "provenance"}},
            },
        )
        found = hashlib.sha256(json.dumps(decisive, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        if self.digest not in ("", found):
            raise ValueError("digest: not that of the request")
        object.__setattr__(self, "digest", found)
        return self

    @property
    def folder_prefix(self) -> str:
        """What names of folders with this step's result begin with, below the adapter's folder."""
        return f"{self.version}-{self.digest[:_NAME_DIGITS]}-"


class StepSeconds(_Document):
    """Durations of a step in the container, in seconds. A step that was found on the Volume has those of the time
    when it was taken."""

    start: float = 0.0
    """Reading the base weights when the container started; 0 after its first step, and for one that was restored from
    a snapshot."""
    load: float
    """Reading the parent from the Volume, and all that the step needs to its device."""
    step: float
    """The step itself."""
    commit: float = 0.0
    """Writing the new folder and committing it; 0 when the folder was there."""


class StepPlace(_Document):
    """Where a step was computed."""

    container: str = ""
    """The platform's id of the container; empty outside the platform."""
    gpu: str = ""
    """The types of GPU that the app was deployed with, by preference, as Modal calls them; `none` for the CPU."""


class TakenStep(_Document):
    """A step that was taken, and is on the Volume."""

    adapter: dict[str, bytes]
    """The adapter's two files by name, as PEFT and vLLM read them."""
    state: _Address
    """The folder with all files of the version, the optimiser's state among them."""
    metrics: dict[str, float]
    libraries: dict[str, str]
    """Versions of the container's libraries that affect the result."""
    provenance: LocalProvenance
    """How it was computed."""
    seconds: StepSeconds
    place: StepPlace = StepPlace()
    found: bool = False
    """Whether an earlier call had taken this step: the answer was read from its folder."""


class StepFailure(_Document):
    """Why no step was taken."""

    reason: FailureReason
    message: str
    """For people; never a text of a sample."""


class StepAnswer(_Document):
    """The answer to a request: exactly one of `taken`, `failure` and `missing`."""

    protocol: int = PROTOCOL
    taken: TakenStep | None = None
    failure: StepFailure | None = None
    missing: tuple[str, ...] | None = None
    """Addresses of folders that are not whole on the Volume: upload them again."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(each is not None for each in (self.taken, self.failure, self.missing)) != 1:
            raise ValueError("exactly one of taken, failure, missing")
        return self

    def document(self) -> dict[str, object]:
        adapter = {} if self.taken is None else {"taken": {"adapter"}}
        made = self.model_dump(mode="json", exclude=adapter)
        if self.taken is not None:
            made["taken"]["adapter"] = dict(self.taken.adapter)
        return made
