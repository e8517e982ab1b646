"""Failures of the vLLM in a container."""


class VllmFaultError(Exception):
    """vLLM does not answer, or not as it should; another try may succeed."""


class VersionFaultError(Exception):
    """vLLM does not take a version."""


class ContainerStartError(Exception):
    """The container can't begin to serve; Modal starts another one."""
