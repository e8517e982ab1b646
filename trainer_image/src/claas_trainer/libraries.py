"""The libraries that a version's bytes depend on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = ("torch", "triton", "transformers", "peft", "safetensors")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that a step's bytes depend on."""
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
