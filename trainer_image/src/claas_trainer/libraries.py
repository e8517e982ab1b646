"""Versions of the libraries that affect the bytes of a version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = ("torch", "triton", "transformers", "peft", "safetensors")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that affect the bytes of a step's result."""
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
