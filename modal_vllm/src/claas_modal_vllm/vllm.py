"""vLLM in this container, asked by its own routes and the companion's."""

from __future__ import annotations

from collections.abc import Mapping

from claas_modal_client.pointers import Pointer
from claas_modal_vllm.errors import VersionFaultError, VllmFaultError
from claas_modal_vllm.plan import InService
from claas_vllm_client import (
    AdapterRejected,
    AliasRejected,
    ProbeFailed,
    ProbeSpec,
    VllmClient,
    VllmError,
    put_in_service,
    take_out_of_service,
)

_LOAD_SECONDS = 300.0


class LocalVllm:
    """The server that this container runs."""

    def __init__(self, client: VllmClient) -> None:
        self._client = client

    async def served(self) -> Mapping[str, InService]:
        """The versions behind all served names. Raises VllmFaultError."""
        try:
            status = await self._client.companion_status()
        except VllmError as error:
            raise VllmFaultError(error.message) from error
        if status is None:
            raise VllmFaultError("vLLM runs without the companion")
        return {alias.name: InService(alias.version, alias.path) for alias in status.aliases if alias.loaded}

    async def loaded(self) -> frozenset[str]:
        """The paths of all loaded adapters. Raises VllmFaultError."""
        try:
            models = await self._client.models()
        except VllmError as error:
            raise VllmFaultError(error.message) from error
        return frozenset(model.root for model in models if model.parent is not None and model.root is not None)

    async def serve(self, pointer: Pointer, path: str) -> None:
        """Put a version into service; the one before stays there if this raises. Raises VersionFaultError if vLLM
        does not take it, VllmFaultError if it may do so later."""
        probe = pointer.probe
        try:
            await put_in_service(
                self._client,
                served_name=pointer.served_name,
                version=pointer.version,
                path=path,
                probe=ProbeSpec(probe.prompt, probe.max_tokens) if probe is not None else None,
                load_timeout_seconds=_LOAD_SECONDS,
            )
        except (AdapterRejected, AliasRejected, ProbeFailed) as error:
            # An answer from a server that is ending proves nothing about the version.
            if await self._alive():
                raise VersionFaultError(error.message) from error
            raise VllmFaultError(error.message) from error
        except VllmError as error:
            raise VllmFaultError(error.message) from error

    async def remove(self, served_name: str) -> None:
        """Take a name out of service. Raises VllmFaultError."""
        try:
            await take_out_of_service(self._client, served_name=served_name)
        except VllmError as error:
            raise VllmFaultError(error.message) from error

    async def _alive(self) -> bool:
        try:
            return await self._client.health()
        except VllmError:
            return False
