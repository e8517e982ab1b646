"""What can go wrong in the companion."""


class CompanionError(Exception):
    """Base of this module's errors."""


class ConfigurationError(CompanionError):
    """The environment variables make no safe companion; the server must not start."""


class ControlError(CompanionError):
    """A control request that can't be done. `status` is the HTTP status of its answer."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
