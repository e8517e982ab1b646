"""The alias table on the volume, from which a restarted server restores its served names."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from claas_vllm.aliases import Alias, parse_alias
from claas_vllm.errors import ControlError
from claas_vllm.log import logger

_LONGEST_FILE_NAME = 250
"""Bytes; file systems take 255."""


class AliasFolder:
    """The alias table on the volume: one JSON file for each name, replaced atomically."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.persisted = self._try(self._touch)

    def save(self, alias: Alias) -> None:
        """Write an alias; a failure goes to the log and to `persisted`."""
        text = json.dumps(asdict(alias))
        self.persisted = self._try(lambda folder: _write_whole(self._file(folder, alias.name), text))

    def remove(self, name: str) -> None:
        """Delete an alias's file."""
        self.persisted = self._try(lambda folder: self._file(folder, name).unlink(missing_ok=True))

    def read(self) -> list[Alias]:
        """All readable aliases; unreadable files are logged and skipped."""
        found: list[Alias] = []
        if self._folder is None or not self._folder.is_dir():
            return found
        for file in sorted(self._folder.glob("*.json")):
            try:
                document = json.loads(file.read_bytes())
                alias = parse_alias(str(document["name"]), json.dumps(document).encode())
            except (OSError, ValueError, KeyError, TypeError, ControlError) as error:
                logger.warning("Skipping the alias file %s: %s", file, error or type(error).__name__)
                continue
            if self._file(self._folder, alias.name) == file:
                found.append(alias)
            else:
                logger.warning("Skipping the alias file %s: it names %s", file, alias.name)
        return found

    @staticmethod
    def _file(folder: Path, name: str) -> Path:
        written = quote(name, safe="")
        if len(written) > _LONGEST_FILE_NAME - len(".json"):
            # Each slash takes three bytes.
            written = f"{written[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return folder / f"{written}.json"

    @staticmethod
    def _touch(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass

    def _try(self, write: Callable[[Path], None]) -> bool:
        if self._folder is None:
            return False
        try:
            write(self._folder)
        except OSError as error:
            logger.warning("Aliases can't be kept in %s (%s); a restart will forget them", self._folder, error)
            return False
        return True


def _write_whole(file: Path, text: str) -> None:
    """Write a temporary file, fsync, rename: readers see the old or the new file, also after a crash."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as stream:
            os.fchmod(handle, 0o644)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(file)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
