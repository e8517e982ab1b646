"""What the SDK raises, as failures that somebody can do something about.

Messages quote the service's own words where it gives some: shortened, without lists, which may be a user's tokens,
and without anything that looks like a key.
"""

from __future__ import annotations

import logging
import re
from enum import Enum
from pathlib import Path

import tinker
from tinker.lib.retryable_exception import RetryableException
from tinker.types import RequestErrorCategory

from claas_tinker_client.answers import Failing
from claas_tinker_client.errors import ServiceFault, TinkerServiceError

_QUOTED = 200
_RETRIED = frozenset({408, 409})
_SDK_VALUE_ERROR = re.compile(r"Error retrieving result|Proto deserialization failed|Server returned a JSON payload")
_GONE = re.compile(r"not found|no longer|does not exist|expired|deleted", re.IGNORECASE)
_SECRET = re.compile(r"\b(?:tml-|eyJ)[\w.~+/=-]*")
_LIST = re.compile(r"\[[^\]]*(\]|$)|\{[^}]*(\}|$)")

_ADVICE = {
    ServiceFault.CREDENTIALS_REFUSED: "check the API key in the Secret of spec.engine.tinker.apiKeySecretRef",
    ServiceFault.BILLING_REQUIRED: "add credit or a payment method in the service's console",
    ServiceFault.RATE_LIMITED: "it is tried again; run fewer steps at once, or ask for a higher limit",
    ServiceFault.MODEL_RETIRED: "set spec.engine.tinker.baseModel of a new adapter to a model that the service has",
    ServiceFault.CHECKPOINT_EXPIRED: "make a new adapter, or go on from a version whose checkpoint is still there",
    ServiceFault.SESSION_LOST: "the step is taken again from its parent",
    ServiceFault.REQUEST_REFUSED: "change the setting or the samples that it names",
    ServiceFault.REQUEST_FAILED: "it is tried again; look at the service's status page",
    ServiceFault.UNREACHABLE: "it is tried again; look at the service's status page and the network's egress rules",
}


class Subject(Enum):
    """What a call needs to be there: a 404 or 410 says that it is gone."""

    MODEL = ServiceFault.MODEL_RETIRED
    """A base model."""
    CHECKPOINT = ServiceFault.CHECKPOINT_EXPIRED
    """A checkpoint."""
    RUN = ServiceFault.SESSION_LOST
    """A training run, or a sampler, of a session."""


def fault(kind: ServiceFault, asked: str, answer: str) -> TinkerServiceError:
    """The failure of a request. `asked` ends `the Tinker service was asked ...`, `answer` is what came of it."""
    return TinkerServiceError(kind, f"the Tinker service was asked {asked} and {answer}; {_ADVICE[kind]}")


def key_fault(file: Path, why: str) -> TinkerServiceError:
    """The key's file is of no use."""
    kind = ServiceFault.CREDENTIALS_REFUSED
    return TinkerServiceError(kind, f"the API key's file {file} {why}; {_ADVICE[kind]}")


def service_fault(error: BaseException, asked: str, subject: Subject) -> TinkerServiceError | None:
    """The failure that the SDK means by an exception; None if the exception is not the SDK's, as one of a loss
    function."""
    match error:
        case TinkerServiceError():
            return error
        case tinker.APIStatusError():
            kind = fault_of_status(error.status_code, subject)
            return fault(kind, asked, f"answered HTTP {error.status_code}{_words(error.body)}")
        case TimeoutError():
            return fault(ServiceFault.UNREACHABLE, asked, "did not answer in time")
        case tinker.APIConnectionError():
            return fault(ServiceFault.UNREACHABLE, asked, "there was no connection to it")
        case tinker.APIError():
            return fault(ServiceFault.UNREACHABLE, asked, "gave an answer that this release can't read")
        case tinker.RequestFailedError():
            return _failed_request(error, asked, subject)
        case RetryableException():
            return fault(ServiceFault.SESSION_LOST, asked, "has lost the request")
        case tinker.TinkerError():
            return _told(error, asked, subject)
        case ValueError() if _SDK_VALUE_ERROR.match(str(error)):
            cause = error.__cause__
            if isinstance(cause, tinker.APIStatusError):
                return service_fault(cause, asked, Subject.RUN)
            return fault(ServiceFault.REQUEST_FAILED, asked, "gave a result that this release can't read")
        case RuntimeError() if error.__cause__ is not None and "poisoned" in str(error):
            return service_fault(error.__cause__, asked, subject)
    return None


def fault_of_status(status: int, subject: Subject) -> ServiceFault:
    """What an HTTP status means."""
    if status in (401, 403):
        return ServiceFault.CREDENTIALS_REFUSED
    if status == 402:
        return ServiceFault.BILLING_REQUIRED
    if status == 429:
        return ServiceFault.RATE_LIMITED
    if status in (404, 410):
        return subject.value
    if status >= 500 or status in _RETRIED:
        return ServiceFault.UNREACHABLE
    return ServiceFault.REQUEST_REFUSED


def overdue(asked: str, seconds: float, failing: Failing | None) -> TinkerServiceError:
    """The failure of a call that has not ended in time. `failing`: how the service answered meanwhile."""
    if failing is None:
        return fault(ServiceFault.UNREACHABLE, asked, f"had not done it after {seconds:.0f} s")
    kind = fault_of_status(failing.status, Subject.RUN)
    return fault(kind, asked, f"kept answering HTTP {failing.status} for {seconds:.0f} s")


def _failed_request(error: tinker.RequestFailedError, asked: str, subject: Subject) -> TinkerServiceError:
    words = _words(error.message.removeprefix("Request failed: ").split(" for self.request_id=")[0])
    if error.category is not RequestErrorCategory.User:
        return fault(ServiceFault.REQUEST_FAILED, asked, f"failed{words}")
    gone = subject is not Subject.RUN and _GONE.search(words)
    return fault(subject.value if gone else ServiceFault.REQUEST_REFUSED, asked, f"refused{words}")


def _told(error: tinker.TinkerError, asked: str, subject: Subject) -> TinkerServiceError:
    """Other errors, which the SDK tells in words: of keys that it does not even send, and of its poller."""
    if re.search(r"api_key|TINKER_CREDENTIAL_CMD|credential", str(error)):
        return fault(
            ServiceFault.CREDENTIALS_REFUSED, asked, "the key can't be one of its keys (they begin with tml-)"
        )
    if status := re.search(r"polling failed .*Error code: (\d{3})", str(error)):
        return fault(fault_of_status(int(status[1]), subject), asked, f"answered HTTP {status[1]}")
    return fault(ServiceFault.UNREACHABLE, asked, "the SDK gave up")


def _words(body: object) -> str:
    """The service's own words, to be put behind others; empty if it gives none."""
    if isinstance(body, dict):
        return next(
            (_words(body[key]) for key in ("detail", "message", "error") if isinstance(body.get(key), str)), ""
        )
    if not isinstance(body, str) or not body.strip():
        return ""
    plain = _LIST.sub("[...]", _SECRET.sub("...", " ".join(body.split())))
    return f": {plain if len(plain) <= _QUOTED else plain[:_QUOTED] + '...'}"


def _is_told_elsewhere(record: logging.LogRecord) -> bool:
    """Whether a line of asyncio's log is of a failure that nobody waits for any more; it has the service's words."""
    error = record.exc_info[1] if record.exc_info else None
    return any(isinstance(each, tinker.TinkerError) for each in (error, error.__cause__ if error else None))


# When a call fails, those beside it are given up, and the SDK's loop would log how they fail.
logging.getLogger("asyncio").addFilter(lambda record: not _is_told_elsewhere(record))
