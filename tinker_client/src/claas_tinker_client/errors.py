"""Failures of the Tinker service, by what somebody has to do about them."""

from __future__ import annotations

from enum import StrEnum


class ServiceFault(StrEnum):
    """Why the service did not do what it was asked."""

    CREDENTIALS_REFUSED = "CredentialsRefused"
    """It refused the API key (HTTP 401, 403), or the key's file can't be read."""
    BILLING_REQUIRED = "BillingRequired"
    """It wants to be paid first (HTTP 402)."""
    RATE_LIMITED = "RateLimited"
    """There were too many requests (HTTP 429)."""
    MODEL_RETIRED = "ModelRetired"
    """It does not have the base model, or does not any more."""
    CHECKPOINT_EXPIRED = "CheckpointExpired"
    """It no longer has the checkpoint (HTTP 404, 410)."""
    SESSION_LOST = "SessionLost"
    """It has ended the training run's session, and with it all that was not saved (HTTP 410)."""
    REQUEST_REFUSED = "RequestRefused"
    """It refused the request itself (HTTP 400, 422)."""
    REQUEST_FAILED = "RequestFailed"
    """It took the request and then failed at it; the same request, numbered the same, has failed for good."""
    UNREACHABLE = "ServiceUnreachable"
    """It does not answer, fails (HTTP 5xx), or takes longer than it may."""


class TinkerServiceError(Exception):
    """The service did not do what it was asked. `message` says what was asked and what to do; it never holds the API
    key or a user's text."""

    def __init__(self, fault: ServiceFault, message: str) -> None:
        super().__init__(f"{fault.value}: {message}")
        self.fault = fault
        self.message = message
