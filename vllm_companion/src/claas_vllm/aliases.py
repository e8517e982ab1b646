"""The alias table: the loaded adapter behind each served name, and the number of requests of each."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from claas_vllm.errors import ControlError

SERVED_NAME_LIMIT = 200
"""The longest served name; LoraAdapter's schema has the same limit."""
TARGET_LIMIT = SERVED_NAME_LIMIT + len("@") + 18 + len("-") + 8
"""The longest name of a version: `name@7` with up to 18 digits, or `name@7-<digest>` with 8."""
_CHARACTERS = r"[A-Za-z0-9][A-Za-z0-9._:@/+-]"
_NAME = re.compile(rf"{_CHARACTERS}{{0,{SERVED_NAME_LIMIT - 1}}}")
_TARGET = re.compile(rf"{_CHARACTERS}{{0,{TARGET_LIMIT - 1}}}")
_VERSION_SUFFIX = re.compile(r"@[0-9]{1,18}(-[0-9a-f]{8})?")


@dataclass(frozen=True)
class Alias:
    """Requests for `name` are answered by `target`, which is version `version` loaded from `path`.

    `probe` is the caller's record of the version's answer to its probe; the companion only stores it.
    """

    name: str
    target: str
    path: str
    version: int
    probe: Mapping[str, Any] | None = None


def parse_alias(name: str, body: bytes) -> Alias:
    """An alias from JSON with target, path, version and perhaps probe. Raises ControlError (400) naming the field."""
    try:
        document = json.loads(body)
    except ValueError:
        raise ControlError(400, "BadRequestError", "the body is not JSON") from None
    if not isinstance(document, dict):
        raise ControlError(400, "BadRequestError", "the body must be an object with target, path and version")
    target, path, version, probe = (document.get(field) for field in ("target", "path", "version", "probe"))
    if not _NAME.fullmatch(name):
        raise ControlError(400, "BadRequestError", f"the served name must match {_NAME.pattern}")
    if not isinstance(target, str) or not _TARGET.fullmatch(target) or target == name:
        raise ControlError(
            400, "BadRequestError", f"target must be another name, matching {_TARGET.pattern}, such as {name}@1"
        )
    if not isinstance(path, str) or not path:
        raise ControlError(400, "BadRequestError", "path must be the path the target was loaded from")
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise ControlError(400, "BadRequestError", "version must be a whole number, 0 or more")
    if probe is not None and not isinstance(probe, dict):
        raise ControlError(400, "BadRequestError", "probe must be an object, or left out")
    return Alias(name=name, target=target, path=path, version=version, probe=probe)


class AliasTable:
    """Maps names to targets, and counts the requests of each target."""

    def __init__(self) -> None:
        self._aliases: dict[str, Alias] = {}
        self._in_flight: Counter[str] = Counter()
        self._retired: dict[str, str] = {}
        self._verified: set[str] = set()

    def __iter__(self) -> Iterator[Alias]:
        return iter(sorted(self._aliases.values(), key=lambda alias: alias.name))

    def __len__(self) -> int:
        return len(self._aliases) + len(self._retired)

    def get(self, name: str) -> Alias | None:
        """The alias of that name, or None."""
        return self._aliases.get(name)

    def verified(self, name: str) -> bool:
        """Whether the name's version has answered a probe since it was loaded and last woke."""
        return name in self._verified

    def doubt(self) -> None:
        """Mark all versions as unverified, because the server slept."""
        self._verified.clear()

    def is_version(self, model: str) -> bool:
        """Whether a loaded adapter is a version behind a served name, which clients do not see."""
        if model in self._retired or model in self._targets():
            return True
        return any(model.startswith(name) and _VERSION_SUFFIX.fullmatch(model, len(name)) for name in self._aliases)

    def put(self, alias: Alias) -> None:
        """Point the alias's name at its target; the previous target is retired unless another name uses it. A `probe`
        means that the version has just answered it.
        """
        old = self._aliases.get(alias.name)
        self._aliases[alias.name] = alias
        (self._verified.add if alias.probe is not None else self._verified.discard)(alias.name)
        self._retired.pop(alias.target, None)
        if old is not None:
            self._retire(old)

    def remove(self, name: str) -> None:
        """Remove a name and retire its target."""
        self._verified.discard(name)
        self._retire(self._aliases.pop(name))

    def _retire(self, old: Alias) -> None:
        if all(alias.target != old.target for alias in self._aliases.values()):
            self._retired[old.target] = old.name

    def begin(self, model: str) -> str | None:
        """Count the start of a request for a name or target; returns the target that answers it, None for other
        models."""
        alias = self._aliases.get(model)
        target = alias.target if alias else model
        if alias is None and target not in self._retired and target not in self._targets():
            return None
        self._in_flight[target] += 1
        return target

    def end(self, target: str) -> bool:
        """Count the end of a request. True if it was the last one on a retired target."""
        self._in_flight[target] -= 1
        if self._in_flight[target] <= 0:
            del self._in_flight[target]
        return target in self._retired and target not in self._in_flight

    def idle_retired(self) -> list[str]:
        """Targets without a name and without requests."""
        return [target for target in self._retired if target not in self._in_flight]

    def forget(self, target: str) -> None:
        """Remove a retired target that has been unloaded."""
        self._retired.pop(target, None)

    def in_flight(self, alias: Alias) -> dict[str, int]:
        """Requests being answered under an alias's name, by target."""
        targets = [alias.target, *(target for target, name in self._retired.items() if name == alias.name)]
        return {target: self._in_flight[target] for target in targets}

    def _targets(self) -> set[str]:
        return {alias.target for alias in self._aliases.values()}
