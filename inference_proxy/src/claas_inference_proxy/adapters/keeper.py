"""Serves the newest version from the start, and sees that what is served answers."""

from __future__ import annotations

import asyncio
import logging

from claas_bounded.waits import Deadline
from claas_inference_proxy.adapters.loaded import Models
from claas_inference_proxy.adapters.volume import servable_versions
from claas_inference_proxy.errors import ProxyError, RefusalError
from claas_inference_proxy.settings import Settings
from claas_inference_proxy.upstream.sampling import Ask
from claas_inference_proxy.upstream.service import Service
from claas_tinker_client.errors import TinkerServiceError
from claas_vllm.aliases import Alias
from claas_vllm.errors import ControlError
from claas_vllm.served_names import ServedNames

logger = logging.getLogger(__name__)

_PERIOD_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 60.0
_TRY_SECONDS = 60.0


class Keeper:
    """Looks after the served name. The operator's and the trainer's choice of a version stands: a version is chosen
    here only as long as nobody has chosen one that can be loaded. Without one the pod would not become ready, and
    nobody asks a pod that is not."""

    def __init__(
        self,
        settings: Settings,
        names: ServedNames,
        models: Models,
        service: Service,
        probe: list[int],
        application: object,
    ) -> None:
        self._name = settings.served_name
        self._directory = settings.adapter_directory
        self._names = names
        self._models = models
        self._service = service
        self._probe = probe
        self._application = application
        self._begun = False
        self._answered: set[str] = set()
        self._why = "it has just started"

    def not_ready(self) -> str | None:
        """Why the proxy is not ready; None if it is: the served version has answered a probe."""
        alias = self._names.table.get(self._name)
        if alias is None:
            return f"no version of {self._name} is served yet: {self._why}"
        if self._has_answered(alias):
            return None
        return f"{alias.target} has not answered yet: {self._why}"

    async def run(self) -> None:
        """Look again and again, less often after failures."""
        failures = 0
        while True:
            try:
                await self.look()
            except (ProxyError, TinkerServiceError, ControlError, OSError) as error:
                failures += 1
                if str(error) != self._why:
                    logger.warning("%s", error)
                self._why = str(error)
            else:
                failures = 0
            await asyncio.sleep(min(_PERIOD_SECONDS * 2**failures, _LONGEST_PAUSE_SECONDS))

    async def look(self) -> None:
        """Serve a version if none ever was, and probe one that has not answered. Raises the errors of this package,
        TinkerServiceError, ControlError, and OSError if the volume fails."""
        if self._names.table.get(self._name) is None and not self._begun:
            await self._names.restore(self._application)
            if self._names.table.get(self._name) is None:
                await self._serve_any()
        alias = self._names.table.get(self._name)
        if alias is None:
            return
        self._begun = True
        if not self._has_answered(alias):
            await self._service.sample(
                self._models.get(alias.target).checkpoint,
                Ask(tuple(self._probe), max_tokens=1, temperature=0.0),
                Deadline.after(_TRY_SECONDS),
            )
            self._answered = {alias.target}

    def _has_answered(self, alias: Alias) -> bool:
        return self._names.table.verified(self._name) or alias.target in self._answered

    async def _serve_any(self) -> None:
        """Serve the version that the name had before, or else the newest; older ones where a version can't be
        loaded, which the service or the volume has no more."""
        kept = self._names.kept(self._name)
        numbers = servable_versions(self._directory)
        candidates = [Alias(self._name, f"{self._name}@{each}", self._path(each), each, None) for each in numbers]
        refused = ""
        for alias in [kept, *candidates] if kept is not None else candidates:
            if all(model.name != alias.target for model in self._models):
                try:
                    await self._models.load(alias.target, alias.path, Deadline.after(_TRY_SECONDS))
                except RefusalError as error:
                    refused = refused or str(error)
                    logger.warning("%s", error)
                    continue
            if self._names.table.get(self._name) is None:
                await self._names.point(self._application, alias)
            return
        raise ProxyError(refused or f"{self._directory} has no version yet")

    def _path(self, number: int) -> str:
        return str(self._directory / "versions" / str(number))
