"""Version 0 of the Modal engine: that of the local engine, uploaded to the Volume. Token and app are checked, which
costs nothing, so that the adapter tells of them before its first job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from claas_bounded.waits import Deadline
from claas_contract.input import TrainerInput
from claas_crds.v1alpha1.engine import ModalEngineSpec
from claas_modal_client.calls import DeployedClass, preflight
from claas_modal_client.connection import ModalAccount, ModalConnection, ModalToken
from claas_trainer.engines.initial_versions import local
from claas_trainer.engines.initial_versions.base import InitialVersion
from claas_trainer.engines.modal.deployment import CLASS_NAME
from claas_trainer.engines.modal.failures import service_failures
from claas_trainer.engines.modal.folders import VersionFolders
from claas_trainer.paths import Paths
from claas_trainer.store.content import FileContent, write_file
from claas_trainer.store.errors import storage_errors

T = TypeVar("T")

_PREFLIGHT_SECONDS = 120.0
_UPLOAD_SECONDS = 900.0


def initial_version(document: TrainerInput, model: Path, seed: int, paths: Paths) -> InitialVersion:
    """`model`: the base model's folder; `seed`: of the initial weights. Raises TrainerError."""
    spec = document.engine.modal or ModalEngineSpec()

    async def check(connection: ModalConnection) -> None:
        with service_failures():
            deployed = DeployedClass(spec.app, CLASS_NAME)
            await preflight(connection, deployed, Deadline.after(_PREFLIGHT_SECONDS))

    _connected(spec, paths, check)
    made = local.initial_version(document, model, seed, paths)
    return replace(made, upload=lambda: _uploaded(spec, document.adapter.uid, made.files, paths))


def _uploaded(spec: ModalEngineSpec, adapter_uid: str, files: Mapping[str, FileContent], paths: Paths) -> str:
    with TemporaryDirectory(dir=paths.scratch) as scratch:
        folder = Path(scratch)
        with storage_errors(folder):
            digests = {name: write_file(folder / name, content) for name, content in files.items()}

        async def upload(connection: ModalConnection) -> str:
            folders = VersionFolders(connection, spec.volume, adapter_uid, Deadline.after(_UPLOAD_SECONDS))
            return str(await folders.upload(0, digests, folder))

        return _connected(spec, paths, upload)


def _connected(spec: ModalEngineSpec, paths: Paths, work: Callable[[ModalConnection], Awaitable[T]]) -> T:
    """The result of work on a connection of its own. In a thread, since the caller may run in an event loop."""

    async def connected() -> T:
        with service_failures():
            connection = ModalConnection(ModalAccount(ModalToken.read(paths.modal_token), spec.environment))
        try:
            return await work(connection)
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, connected()).result()
