"""The companion's settings, from the environment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from claas_vllm.errors import ConfigurationError
from claas_vllm.log import logger


@dataclass(frozen=True)
class Settings:
    """The checked environment. `token_file` is None if the lock is off, `alias_dir` if aliases are not stored."""

    token_file: Path | None
    alias_dir: Path | None
    open_paths: tuple[str, ...]


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from environment variables. Raises ConfigurationError with what to set."""
    lock = environment.get("CLAAS_LOCK", "on").strip().lower()
    token_file = environment.get("CLAAS_TOKEN_FILE", "").strip()
    if lock not in ("on", "off"):
        raise ConfigurationError(f"CLAAS_LOCK is {lock!r}; it must be on or off")
    if lock == "on" and not token_file:
        raise ConfigurationError(
            "CLAAS_TOKEN_FILE is not set, so control routes would be open to everyone. Set it to the path of a file"
            " with the control token (a mounted Secret), or set CLAAS_LOCK=off to run without the lock"
        )
    if lock == "off":
        logger.warning("CLAAS_LOCK=off: control routes are open to everyone who reaches this server")
    alias_dir = environment.get("CLAAS_ALIAS_DIR", "").strip()
    extra = tuple(path.strip() for path in environment.get("CLAAS_OPEN_PATHS", "").split(",") if path.strip())
    for path in extra:
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
            raise ConfigurationError(f"CLAAS_OPEN_PATHS has {path!r}; a path looks like /my/route")
    return Settings(
        token_file=None if lock == "off" else Path(token_file),
        alias_dir=Path(alias_dir) if alias_dir else None,
        open_paths=extra,
    )
