"""The vLLM that this process runs, and the releases that the companion was tested with."""

import sys

SUPPORTED_VLLM_VERSIONS = ("0.32", "0.33")


def is_supported(release: str | None) -> bool:
    """Whether this companion was tested against that vLLM release."""
    return release is not None and ".".join(release.split(".")[:2]) in SUPPORTED_VLLM_VERSIONS


def vllm_version() -> str | None:
    """The release that runs in this process, or None."""
    # Already imported wherever vLLM runs; importing it for its version elsewhere would take half a minute.
    version = getattr(sys.modules.get("vllm.version"), "__version__", None)
    return version if isinstance(version, str) else None
