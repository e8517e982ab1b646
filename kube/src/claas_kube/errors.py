"""Errors of the API server.

ApiError            the API server refused a request
├── Conflict        the object changed, or exists already
├── Forbidden       a right is missing
├── Gone            it has forgotten what happened since a resourceVersion
└── Unavailable     it can't answer now: HTTP 429 or 5xx, or no connection
"""

from __future__ import annotations


class ApiError(Exception):
    """The API server refused a request; `status` is the HTTP status."""

    def __init__(self, status: int, what: str, message: str) -> None:
        super().__init__(f"{what}: {f'HTTP {status}' if status else 'no answer'}: {message}")
        self.status = status


class Conflict(ApiError):  # noqa: N818  (the Kubernetes reason's own name)
    """The object exists already, or has changed since it was read: read it again and decide again."""


class Forbidden(ApiError):  # noqa: N818  (the Kubernetes reason's own name)
    """The service account lacks a permission; the chart's RBAC lists all that are needed."""


class Gone(ApiError):  # noqa: N818  (the Kubernetes reason's own name)
    """The server has forgotten the changes since a resourceVersion, or the state at it: list again."""


class Unavailable(ApiError):  # noqa: N818  (a state of the API server)
    """The API server can't answer now: HTTP 429 or 5xx, or, with status 0, no connection. A retry may succeed;
    `retry_after_seconds` is the wait that the server asked for."""

    def __init__(self, status: int, what: str, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(status, what, message)
        self.retry_after_seconds = retry_after_seconds
