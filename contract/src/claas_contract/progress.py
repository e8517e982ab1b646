"""Progress of a running trainer, served over HTTP."""

from __future__ import annotations

from datetime import datetime

from claas_contract.base import ContractModel
from claas_crds.v1alpha1.step import JobPhase


class Progress(ContractModel):
    """Progress of a running trainer; served at PROGRESS_PATH."""

    phase: JobPhase
    detail: str = ""
    """Such as `micro-batch 3 of 8`."""
    paused_since: datetime | None = None
    """When serving was paused; None while it is not."""
