"""Changes served names: points them to loaded versions, deletes them, restores them after a restart, unloads idle
versions."""

import asyncio
from dataclasses import asdict
from typing import Any

from claas_vllm.alias_folder import AliasFolder
from claas_vllm.aliases import Alias, AliasTable
from claas_vllm.errors import ControlError
from claas_vllm.inner_server import InnerServer, same_path
from claas_vllm.log import logger

_RESTORE_TIMEOUT_SECONDS = 120.0


class ServedNames:
    """Keeps the alias table consistent with vLLM's loaded adapters and the volume; one change at a time."""

    def __init__(self, server: InnerServer, folder: AliasFolder) -> None:
        self.table = AliasTable()
        self._server = server
        self._folder = folder
        self._changing = asyncio.Lock()

    @property
    def persisted(self) -> bool:
        """Whether the names survive a restart."""
        return self._folder.persisted

    def kept(self, name: str) -> Alias | None:
        """A name as it is on the volume, though its version may not be loaded."""
        return next((alias for alias in self._folder.read() if alias.name == name), None)

    async def restore(self, application: object) -> None:
        """Load and serve the aliases on the volume that are not served yet. Adapters that can't be loaded are
        logged."""
        for alias in self._folder.read():
            if self.table.get(alias.name) is not None:
                continue
            try:
                async with self._changing:
                    load = self._server.load(application, alias.target, alias.path)
                    await asyncio.wait_for(load, _RESTORE_TIMEOUT_SECONDS)
                    self.table.put(alias)
                    # Loaded, but not verified yet.
                    self.table.doubt()
            except Exception as error:  # noqa: BLE001 One adapter must not prevent the server from starting.
                reason = error if isinstance(error, ControlError) else type(error).__name__
                logger.warning("%s is not served: %s can't be loaded: %s", alias.name, alias.path, reason)
            else:
                logger.info("%s is served by %s from %s again", alias.name, alias.target, alias.path)

    async def point(self, application: object, alias: Alias) -> None:
        """Point a name to a loaded version. Raises ControlError if it is not loaded, or the name is taken."""
        async with self._changing:
            cards = {card["id"]: card for card in await self._server.models(application)}
            target = cards.get(alias.target)
            if target is None or target.get("parent") is None:
                raise ControlError(
                    409, "ConflictError",
                    f"{alias.target} is not a loaded adapter; load it by /v1/load_lora_adapter first",
                )  # fmt: skip
            if not same_path(target.get("root"), alias.path):
                raise ControlError(
                    409, "ConflictError", f"{alias.target} is loaded from {target.get('root')}, not {alias.path}"
                )
            if alias.name in cards and cards[alias.name].get("parent") is None:
                raise ControlError(409, "ConflictError", f"{alias.name} is the base model; serve under another name")
            known = self.table.get(alias.name)
            if alias != known or not self._folder.persisted:
                # Write to the volume first: after a crash in between, the server restarts with the requested version.
                await asyncio.to_thread(self._folder.save, alias)
            self.table.put(alias)
            if known is None or known.target != alias.target:
                logger.info("%s is served by %s from %s", alias.name, alias.target, alias.path)

    async def delete(self, name: str) -> None:
        """Stop serving a name. Raises ControlError (404) if it is not served."""
        async with self._changing:
            # Delete the file even if the name is not served: its version may have failed to load at start-up.
            await asyncio.to_thread(self._folder.remove, name)
            if self.table.get(name) is None:
                raise ControlError(404, "NotFoundError", f"{name} is not a served name")
            self.table.remove(name)
            logger.info("%s is no longer served", name)

    async def describe(self, application: object) -> list[dict[str, Any]]:
        """Each alias, with whether its target is loaded from its path, whether it is verified, and its requests."""
        roots = {card["id"]: card.get("root") for card in await self._server.models(application)}
        return [
            {
                **asdict(alias),
                "loaded": same_path(roots.get(alias.target), alias.path),
                "verified": self.table.verified(alias.name),
                "in_flight": self.table.in_flight(alias),
            }
            for alias in self.table
        ]

    async def cards(self, application: object) -> list[dict[str, Any]]:
        """Entries of `/v1/models`: the base model, all loaded adapters, and the served names."""
        return self._with_names(await self._server.models(application))

    def cards_for_clients(self, cards: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same without the versions behind the names."""
        return [card for card in self._with_names(cards) if not self.table.is_version(card["id"])]

    def _with_names(self, cards: list[dict[str, Any]]) -> list[dict[str, Any]]:
        by_id = {card["id"]: card for card in cards}
        for alias in self.table:
            if alias.target in by_id:
                by_id[alias.name] = {**by_id[alias.target], "id": alias.name}
        return list(by_id.values())

    async def unload_idle(self, application: object) -> None:
        """Unload versions without a name and without requests."""
        async with self._changing:
            for target in self.table.idle_retired():
                try:
                    unloaded = await self._server.unload(application, target)
                except Exception as error:  # noqa: BLE001 vLLM failed; retried after the next request.
                    logger.warning("%s can't be unloaded yet: %s", target, type(error).__name__)
                    continue
                if unloaded:
                    self.table.forget(target)
                    logger.info("%s is unloaded", target)
