"""Failures of the Modal platform, by what somebody has to do about them."""

from __future__ import annotations

from enum import StrEnum


class ModalFault(StrEnum):
    """Why the platform did not do what it was asked."""

    CREDENTIALS_REFUSED = "CredentialsRefused"
    """It refused the token, or the token can't be read."""
    BILLING_REQUIRED = "BillingRequired"
    """It wants to be paid first: no credit, no payment method, or a spend limit is reached."""
    RATE_LIMITED = "RateLimited"
    """There were too many requests."""
    NOT_DEPLOYED = "NotDeployed"
    """It has no such app, class, server or Volume: they come with the deployment of an app."""
    CALL_LOST = "CallLost"
    """It does not know the call, keeps its result no longer, or its container was lost for good."""
    CALL_CANCELLED = "CallCancelled"
    """Somebody has cancelled the call."""
    CALL_FAILED = "CallFailed"
    """The class raised an exception, could not start, or gave a result that is not read here."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The container's memory did not suffice."""
    TIMED_OUT = "TimedOut"
    """The call took longer than the class, or its caller, allows."""
    FILE_MISSING = "FileMissing"
    """A file or folder is not on the Volume, or not as it was written."""
    REQUEST_REFUSED = "RequestRefused"
    """It refused the request itself."""
    UNREACHABLE = "ServiceUnreachable"
    """It does not answer, fails, or takes longer than it may."""


class ModalServiceError(Exception):
    """The platform did not do what it was asked. `message` says what was asked and what to do; it never holds a token
    or a user's text."""

    def __init__(self, kind: ModalFault, message: str) -> None:
        super().__init__(f"{kind.value}: {message}")
        self.kind = kind
        self.message = message
