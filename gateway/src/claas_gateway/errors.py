"""Errors of the gateway.

GatewayError              something that a client is told
├── BadRequest            400: the request contradicts itself
├── Unauthenticated       401: no key, or an unknown one
├── NotPermitted          403: the key does not allow this
├── NotFound              404: no such adapter, rollout, feedback
├── Conflicting           409: the name or the idempotency key is taken
├── TooLarge              413: the body or one item is too large
├── Unprocessable         422: a value is wrong
├── TooMany               429: more requests than the key may make
├── Failed                500: a step or an initialisation failed
├── NotProvided           501: this gateway, or the servers behind it, lack what that takes
└── NotNow                503: nothing can answer now; try again
SettingsError             the gateway can't start with its settings
"""

from __future__ import annotations


class GatewayError(Exception):
    """Something that a client is told: what was wrong, where, and what to do. The message never quotes a prompt, an
    answer or feedback.

    `status` is the HTTP status; `retry_after_seconds`, if set, becomes the header Retry-After.
    """

    status = 500

    def __init__(self, detail: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds


class BadRequest(GatewayError):  # noqa: N818  (HTTP's own name)
    """The request contradicts itself."""

    status = 400


class Unauthenticated(GatewayError):  # noqa: N818  (HTTP's own name)
    """The request has no API key, or an unknown one."""

    status = 401


class NotPermitted(GatewayError):  # noqa: N818  (HTTP's own name)
    """The API key does not allow this."""

    status = 403


class NotFound(GatewayError):  # noqa: N818  (HTTP's own name)
    """What the request names does not exist, or the key does not see it; the two are not told apart."""

    status = 404


class Conflicting(GatewayError):  # noqa: N818  (HTTP's own name)
    """A name or an idempotency key is taken."""

    status = 409


class TooLarge(GatewayError):  # noqa: N818  (HTTP's own name)
    """The body, or an item in it, is too large."""

    status = 413


class Unprocessable(GatewayError):  # noqa: N818  (HTTP's own name)
    """A value is wrong."""

    status = 422


class TooMany(GatewayError):  # noqa: N818  (HTTP's own name)
    """The key makes more requests than it may."""

    status = 429


class Failed(GatewayError):  # noqa: N818  (HTTP's own name)
    """A step or an initialisation failed."""

    status = 500


class NotProvided(GatewayError):  # noqa: N818  (HTTP's own name is NotImplemented, which Python has)
    """This gateway, or the servers behind it, lack what the request takes; the message says what to set up."""

    status = 501


class NotNow(GatewayError):  # noqa: N818  (HTTP's own name)
    """Nothing can answer now; a retry may succeed."""

    status = 503


class SettingsError(Exception):
    """The gateway can't start with its settings; the message names the variable."""
