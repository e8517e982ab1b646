"""Exceptions of the companion."""


class CompanionError(Exception):
    """Base of this module's errors."""


class ConfigurationError(CompanionError):
    """The environment variables are wrong or unsafe; the server must not start."""


class ControlError(CompanionError):
    """A control request failed. `status` is the HTTP status of the answer."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
