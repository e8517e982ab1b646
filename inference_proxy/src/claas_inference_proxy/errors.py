"""What clients are refused, in OpenAI's shape and with vLLM's statuses."""

from __future__ import annotations

from http import HTTPStatus

from pydantic import ValidationError

from claas_tinker_client.errors import ServiceFault, TinkerServiceError

_RETRY_SECONDS = 5
_ANSWERS = {
    ServiceFault.CREDENTIALS_REFUSED: (HTTPStatus.BAD_GATEWAY, "UpstreamError"),
    ServiceFault.BILLING_REQUIRED: (HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError"),
    ServiceFault.RATE_LIMITED: (HTTPStatus.TOO_MANY_REQUESTS, "RateLimitError"),
    ServiceFault.MODEL_RETIRED: (HTTPStatus.BAD_GATEWAY, "UpstreamError"),
    ServiceFault.CHECKPOINT_EXPIRED: (HTTPStatus.BAD_GATEWAY, "UpstreamError"),
    ServiceFault.SESSION_LOST: (HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError"),
    ServiceFault.REQUEST_REFUSED: (HTTPStatus.BAD_REQUEST, "BadRequestError"),
    ServiceFault.REQUEST_FAILED: (HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError"),
    ServiceFault.UNREACHABLE: (HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError"),
}
_MAY_PASS = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class ProxyError(Exception):
    """Base of this package's errors."""


class SettingsError(ProxyError):
    """The environment does not say how the proxy is to run. The message names the variable."""


class ModelFilesError(ProxyError):
    """The base model's tokenizer can't be read. The message says from where."""


class RefusalError(ProxyError):
    """A request that is not answered. `message` never holds the client's text."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        kind: str = "BadRequestError",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.kind = kind

    @property
    def retry_after_seconds(self) -> int | None:
        """When another try may be answered; None: not before something is changed."""
        return _RETRY_SECONDS if self.status in _MAY_PASS else None

    def document(self) -> dict[str, object]:
        """The answer's body."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": int(self.status)}
        return {"error": error}


def bad_value(message: str, param: str) -> RefusalError:
    """A value of the request that can't be honoured."""
    return RefusalError(message, param=param)


def not_found(message: str, param: str | None = None) -> RefusalError:
    """A model or adapter that is not there."""
    return RefusalError(message, param=param, status=HTTPStatus.NOT_FOUND, kind="NotFoundError")


def malformed(error: ValidationError) -> RefusalError:
    """A body of another form, told without its values."""
    faults = [(".".join(str(part) for part in found["loc"]), found["msg"]) for found in error.errors()]
    return RefusalError("; ".join(f"{place or 'body'}: {said}" for place, said in faults), param=faults[0][0] or None)


def of_service(error: TinkerServiceError) -> RefusalError:
    """What a client is told when the service did not answer."""
    status, kind = _ANSWERS[error.fault]
    return RefusalError(f"{error.fault.value}: {error.message}", status=status, kind=kind)
