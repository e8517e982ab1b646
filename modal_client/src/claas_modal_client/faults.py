"""What the SDK raises, as failures that somebody can do something about.

Messages quote the platform's own words where it gives some: shortened, without lists, addresses, and anything that
looks like a token. What the class said in a container is never quoted, because it may quote samples.
"""

from __future__ import annotations

import asyncio
import re
from enum import Enum

import aiohttp
from grpclib.exceptions import StreamTerminatedError
from h2.exceptions import ProtocolError

from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.sdk import CallState, Output, modal

_QUOTED = 200
_BILLING = re.compile(
    r"\bbilling|\bspend(?:ing)? limit|\bpayment|\bcredits?\b|\bcredit balance|\bout of funds|\bunpaid|\binvoice",
    re.IGNORECASE,
)
_SECRET = re.compile(r"\b(?:(?:ak|as|wk|ws|sk)-|eyJ)[\w.~+/=-]{4,}")
_ADDRESS = re.compile(r"https?://\S+")
_LIST = re.compile(r"\[[^\]]*(\]|$)|\{[^}]*(\}|$)|\([^)]{40,}(\)|$)")
_CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}(?=\(|$|:)")

ADVICE = {
    ModalFault.CREDENTIALS_REFUSED: "check the token in the Secret of spec.engine.modal.tokenSecretRef",
    ModalFault.BILLING_REQUIRED: "add credit or raise the spend limit in the workspace's billing settings",
    ModalFault.RATE_LIMITED: "it is tried again; run fewer steps at once",
    ModalFault.NOT_DEPLOYED: "deploy the app with `modal deploy` in the environment of spec.engine.modal",
    ModalFault.CALL_LOST: "it is tried again",
    ModalFault.CALL_CANCELLED: "it is tried again, unless the job is deleted",
    ModalFault.CALL_FAILED: "look at the app's log with `modal app logs`",
    ModalFault.OUT_OF_MEMORY: "deploy the app with more memory (CLAAS_MODAL_MEMORY_MIB)",
    ModalFault.TIMED_OUT: (
        "allow more time with spec.engine.modal.stepTimeoutSeconds, and with CLAAS_MODAL_TIMEOUT_SECONDS when the app"
        " is deployed"
    ),
    ModalFault.FILE_MISSING: "look at the Volume with `modal volume ls`",
    ModalFault.REQUEST_REFUSED: "change the setting that it names",
    ModalFault.UNREACHABLE: "it is tried again; look at the platform's status page and the network's egress rules",
}


class Missing(Enum):
    """What a call needs to be there: what NotFoundError says is missing."""

    APP = ModalFault.NOT_DEPLOYED
    """An app, its class, server or Volume."""
    CALL = ModalFault.CALL_LOST
    """A call."""
    FILE = ModalFault.FILE_MISSING
    """A file or folder on a Volume."""


_UNREACHABLE: tuple[type[BaseException], ...] = (
    modal.exception.ConnectionError,
    modal.exception.ServiceError,
    modal.exception.InternalError,
    modal.exception.DataLossError,
    modal.exception.TimeoutError,
    modal.exception.ClientClosed,
    # What block and blob transfers end with.
    modal.exception.ExecutionError,
    aiohttp.ClientError,
    StreamTerminatedError,
    ProtocolError,
    ConnectionError,
)
_REFUSED: tuple[type[BaseException], ...] = (
    modal.exception.InvalidError,
    modal.exception.AlreadyExistsError,
    modal.exception.UnimplementedError,
    modal.exception.RequestSizeError,
    modal.exception.SerializationError,
    modal.exception.VersionError,
)


def fault(kind: ModalFault, asked: str, answer: str) -> ModalServiceError:
    """The failure of a request. `asked` ends `the Modal platform was asked ...`, `answer` is what came of it."""
    return ModalServiceError(kind, f"the Modal platform was asked {asked} and {answer}; {ADVICE[kind]}")


def token_fault(place: str, why: str) -> ModalServiceError:
    """The token is of no use."""
    kind = ModalFault.CREDENTIALS_REFUSED
    return ModalServiceError(kind, f"the Modal token in {place} {why}; {ADVICE[kind]}")


def service_fault(error: BaseException, asked: str, missing: Missing) -> ModalServiceError | None:
    """The failure that the SDK means by an exception; None if the exception is not the SDK's."""
    words = _words(error)
    match error:
        case ModalServiceError():
            return error
        case modal.exception.NotFoundError():
            # It quotes names, which may be any word.
            return fault(missing.value, asked, f"did not find it{words}")
        case modal.exception.Error() if _BILLING.search(str(error)):
            return fault(ModalFault.BILLING_REQUIRED, asked, f"wants to be paid{words}")
        case modal.exception.AuthError():
            return fault(ModalFault.CREDENTIALS_REFUSED, asked, f"refused the token{words}")
        case modal.exception.PermissionDeniedError():
            return fault(ModalFault.CREDENTIALS_REFUSED, asked, f"does not let this token do that{words}")
        case modal.exception.ResourceExhaustedError():
            return fault(ModalFault.RATE_LIMITED, asked, f"had too many requests{words}")
        case FileNotFoundError():
            return fault(ModalFault.FILE_MISSING, asked, "did not find it")
        case FileExistsError():
            return fault(ModalFault.REQUEST_REFUSED, asked, "has another file there")
        case modal.exception.OutputExpiredError():
            return fault(ModalFault.CALL_LOST, asked, "keeps the result no longer")
        case asyncio.TimeoutError():
            return fault(ModalFault.UNREACHABLE, asked, "did not answer in time")
        case modal.exception.ConflictError():
            return fault(ModalFault.UNREACHABLE, asked, f"can't do it now{words}")
        case _ if isinstance(error, _REFUSED):
            return fault(ModalFault.REQUEST_REFUSED, asked, f"refused{words}")
        case modal.exception.ExecutionError():
            return fault(ModalFault.UNREACHABLE, asked, "a transfer of its data failed")
        case _ if isinstance(error, _UNREACHABLE):
            return fault(ModalFault.UNREACHABLE, asked, f"there was no answer{words}")
        case modal.exception.Error():
            return fault(ModalFault.UNREACHABLE, asked, f"failed with {type(error).__name__}{words}")
    return None


def call_fault(output: Output, asked: str) -> ModalServiceError:
    """Why a call that has ended gave no result."""
    match output.state:
        case CallState.FAILURE:
            return fault(ModalFault.CALL_FAILED, asked, f"its class raised {_class_name(output.told)}")
        case _ if _BILLING.search(output.told):
            return fault(ModalFault.BILLING_REQUIRED, asked, "wants to be paid")
        case CallState.EXPIRED:
            return fault(ModalFault.CALL_LOST, asked, "keeps the result no longer")
        case CallState.TERMINATED:
            return fault(ModalFault.CALL_CANCELLED, asked, "the call has been cancelled")
        case CallState.TIMEOUT:
            return fault(ModalFault.TIMED_OUT, asked, "ended it after the time limit of the app's deployment")
        case CallState.INIT_FAILURE:
            return fault(ModalFault.CALL_FAILED, asked, f"its class did not start ({_class_name(output.told)})")
        case CallState.OUT_OF_MEMORY:
            return fault(ModalFault.OUT_OF_MEMORY, asked, "its container ran out of memory")
        case _:
            return fault(ModalFault.CALL_LOST, asked, "lost the container for good")


def _class_name(told: str) -> str:
    found = _CLASS_NAME.match(told.strip())
    return found[0] if found else "an exception"


def _words(error: BaseException) -> str:
    """The platform's own words, to be put behind others; empty if it gives none."""
    if not isinstance(error, modal.exception.Error) or not str(error).strip():
        return ""
    plain = _LIST.sub("[...]", _ADDRESS.sub("...", _SECRET.sub("...", " ".join(str(error).split()).rstrip("."))))
    return f": {plain if len(plain) <= _QUOTED else plain[:_QUOTED] + '...'}"
