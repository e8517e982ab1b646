"""The vLLM release of this process, and the releases that the companion was tested with."""

import sys

SUPPORTED_VLLM_VERSIONS = ("0.32", "0.33")


def is_supported(release: str | None) -> bool:
    """Whether the companion was tested with that vLLM release."""
    return release is not None and ".".join(release.split(".")[:2]) in SUPPORTED_VLLM_VERSIONS


def vllm_version() -> str | None:
    """The vLLM release in this process, or None."""
    # Imported already where vLLM runs; elsewhere importing it would take half a minute.
    version = getattr(sys.modules.get("vllm.version"), "__version__", None)
    return version if isinstance(version, str) else None
