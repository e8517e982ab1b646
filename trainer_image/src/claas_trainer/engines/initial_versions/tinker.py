"""Version 0 of the Tinker engine: the base model. The service is only asked whether it trains that, which costs
nothing."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from claas_bounded.waits import Deadline
from claas_contract.engine_refusals import engine_refusals
from claas_contract.input import TrainerInput
from claas_crds.v1alpha1.engine import TinkerEngineSpec
from claas_tinker_client.connection import Account, TinkerConnection
from claas_trainer.engines.initial_versions.base import InitialVersion
from claas_trainer.engines.tinker.failures import service_failures
from claas_trainer.engines.tinker.version import first_version, version_file
from claas_trainer.errors import InputError
from claas_trainer.paths import Paths
from claas_trainer.store.content import FileContent

_PREFLIGHT_SECONDS = 120.0


def initial_version(document: TrainerInput, model: Path, seed: int, paths: Paths) -> InitialVersion:
    """`model`: the base model's folder; `seed`: of the weights that the first step makes. Raises TrainerError."""
    spec, rank = document.engine.tinker or TinkerEngineSpec(), document.lora.rank
    if refusals := engine_refusals(document.engine, document.training, document.lora):
        raise InputError("; ".join(refusals))
    base_model = spec.base_model or document.model.repository
    if base_model is None:
        raise InputError("spec.engine.tinker.baseModel: give the service's name of the base model")
    files: dict[str, FileContent] = {**version_file(first_version(base_model, rank, seed))}
    if spec.export:
        files |= _adapter_files(model, rank, seed)
    # In a thread, since the caller may run in an event loop.
    with ThreadPoolExecutor(1) as preflight:
        preflight.submit(asyncio.run, _check(spec, base_model, paths)).result()
    return InitialVersion(files, layers=())


async def _check(spec: TinkerEngineSpec, base_model: str, paths: Paths) -> None:
    """Checks that the service takes the key and trains the base model. Raises EngineError."""
    connection = TinkerConnection(Account(paths.tinker_key, spec.base_url, spec.project_id))
    try:
        with service_failures():
            await connection.check_model(base_model, Deadline.after(_PREFLIGHT_SECONDS))
    finally:
        await connection.close()


def _adapter_files(model: Path, rank: int, seed: int) -> dict[str, FileContent]:
    """A PEFT adapter without effect (B is zero), so that a vLLM has something to serve. Raises InputError."""
    from claas_trainer.engines.tinker.external.peft import effectless_files, exportable_shape

    return effectless_files(exportable_shape(model), rank, seed)
