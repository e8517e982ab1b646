"""`tinker.json`: a version of an adapter whose weights the Tinker service keeps."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

VERSION_FILE = "tinker.json"


class TinkerVersion(BaseModel):
    """The content of `tinker.json`. A newer release may add fields; older ones ignore them."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    base_model: str
    """The service's name of the base model."""
    rank: int
    seed: int
    """Seed of the adapter's initial weights."""
    step: int = 0
    """Number of steps that were taken up to this version."""
    run: str | None = None
    """The training run that took the last step. None for the initial version, which is the base model: the first
    step makes a LoRA of this rank from this seed."""
    state_path: str | None = None
    """Checkpoint of the weights and of Adam's state, which the next step starts from."""
    sampler_path: str | None = None
    """Checkpoint of the weights for sampling; None: the base model."""
    lineage: tuple[str, ...] = ()
    """State paths of the versions that it descends from, oldest first."""

    @classmethod
    def read(cls, folder: Path) -> TinkerVersion:
        """Of a version's folder. Raises OSError and pydantic.ValidationError."""
        return cls.model_validate_json((folder / VERSION_FILE).read_bytes())
