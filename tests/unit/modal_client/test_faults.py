"""What each exception of the SDK means, and what its message may hold."""

from __future__ import annotations

import aiohttp
import pytest
from grpclib.exceptions import StreamTerminatedError

from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.faults import ADVICE, Missing, call_fault, service_fault
from claas_modal_client.sdk import CallState, Output, modal

SECRET = "as-a1b2c3d4e5f6g7h8"
PROMPT = "a sample that nobody may read"
e = modal.exception


@pytest.mark.parametrize(
    ("error", "missing", "kind"),
    [
        (e.AuthError("Token missing"), Missing.APP, ModalFault.CREDENTIALS_REFUSED),
        (e.PermissionDeniedError("not in this workspace"), Missing.APP, ModalFault.CREDENTIALS_REFUSED),
        (e.PermissionDeniedError("add a payment method"), Missing.APP, ModalFault.BILLING_REQUIRED),
        (e.ResourceExhaustedError("rate limit exceeded"), Missing.APP, ModalFault.RATE_LIMITED),
        (
            e.ResourceExhaustedError("workspace billing cycle spend limit reached"),
            Missing.CALL,
            ModalFault.BILLING_REQUIRED,
        ),
        (e.ConflictError("You are out of credits"), Missing.APP, ModalFault.BILLING_REQUIRED),
        (e.NotFoundError("Lookup failed for Cls"), Missing.APP, ModalFault.NOT_DEPLOYED),
        (e.NotFoundError("no such call"), Missing.CALL, ModalFault.CALL_LOST),
        (e.NotFoundError("no such folder"), Missing.FILE, ModalFault.FILE_MISSING),
        (FileNotFoundError("gone"), Missing.FILE, ModalFault.FILE_MISSING),
        (FileExistsError("there"), Missing.FILE, ModalFault.REQUEST_REFUSED),
        (e.OutputExpiredError(), Missing.CALL, ModalFault.CALL_LOST),
        (e.ConnectionError("Could not connect"), Missing.APP, ModalFault.UNREACHABLE),
        (e.ServiceError("unavailable"), Missing.APP, ModalFault.UNREACHABLE),
        (e.InternalError("oops"), Missing.APP, ModalFault.UNREACHABLE),
        (e.DataLossError("oops"), Missing.APP, ModalFault.UNREACHABLE),
        (e.ClientClosed(), Missing.APP, ModalFault.UNREACHABLE),
        (e.VolumeUploadTimeoutError("slow"), Missing.FILE, ModalFault.UNREACHABLE),
        (e.ExecutionError("Request failed with status 403"), Missing.FILE, ModalFault.UNREACHABLE),
        (TimeoutError(), Missing.APP, ModalFault.UNREACHABLE),
        (ConnectionResetError(), Missing.APP, ModalFault.UNREACHABLE),
        (StreamTerminatedError("cut"), Missing.FILE, ModalFault.UNREACHABLE),
        (aiohttp.ClientPayloadError("cut"), Missing.FILE, ModalFault.UNREACHABLE),
        (e.InvalidError("bad name"), Missing.APP, ModalFault.REQUEST_REFUSED),
        (e.ConflictError("in use"), Missing.APP, ModalFault.UNREACHABLE),
        (
            e.NotFoundError("Lookup failed for Cls 'Trainer' from the 'billing' app"),
            Missing.APP,
            ModalFault.NOT_DEPLOYED,
        ),
        (e.AlreadyExistsError("there"), Missing.APP, ModalFault.REQUEST_REFUSED),
        (e.UnimplementedError("no"), Missing.APP, ModalFault.REQUEST_REFUSED),
        (e.VersionError("too old"), Missing.APP, ModalFault.REQUEST_REFUSED),
    ],
)
def test_an_exception_is_told_by_its_class_and_text(error: Exception, missing: Missing, kind: ModalFault) -> None:
    told = service_fault(error, "for something", missing)
    assert told is not None
    assert told.kind is kind
    assert "was asked for something and" in told.message
    assert told.message.endswith(ADVICE[kind])


@pytest.mark.parametrize(
    ("state", "told", "kind"),
    [
        (CallState.FAILURE, "ValueError('x')", ModalFault.CALL_FAILED),
        (CallState.EXPIRED, "", ModalFault.CALL_LOST),
        (CallState.TERMINATED, "", ModalFault.CALL_CANCELLED),
        (CallState.TIMEOUT, "hit its timeout of 600s", ModalFault.TIMED_OUT),
        (CallState.INIT_FAILURE, "ImportError('x')", ModalFault.CALL_FAILED),
        (CallState.OUT_OF_MEMORY, "", ModalFault.OUT_OF_MEMORY),
        (CallState.INTERNAL_FAILURE, "container lost", ModalFault.CALL_LOST),
        (CallState.INTERNAL_FAILURE, "workspace spend limit reached", ModalFault.BILLING_REQUIRED),
        (CallState.TERMINATED, "out of credits", ModalFault.BILLING_REQUIRED),
        (CallState.FAILURE, "ValueError('the invoice is unpaid')", ModalFault.CALL_FAILED),
    ],
)
def test_a_call_without_result_is_told_by_its_state(state: CallState, told: str, kind: ModalFault) -> None:
    assert call_fault(Output(state, told), "for a result").kind is kind


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (f"LookupError('{PROMPT}')", "LookupError"),
        (f"torch.cuda.OutOfMemoryError: {PROMPT}", "torch.cuda.OutOfMemoryError"),
        (f"{PROMPT}", "an exception"),
        ("", "an exception"),
        ("KeyError", "KeyError"),
    ],
)
def test_of_the_class_s_own_exception_only_the_name_is_told(told: str, name: str) -> None:
    for state in (CallState.FAILURE, CallState.INIT_FAILURE):
        message = call_fault(Output(state, told), "for a result").message
        assert name in message
        assert PROMPT not in message


@pytest.mark.parametrize(
    "words",
    [
        f"token {SECRET} is revoked",
        f"bad header x-modal-token-secret={SECRET}",
        f"see https://blobs.example/x?signature={SECRET}",
        f"got [{PROMPT}, {SECRET}]",
        f"got {{'prompt': '{PROMPT} {SECRET}'}}",
    ],
)
def test_a_message_quotes_the_platform_without_tokens_lists_and_addresses(words: str) -> None:
    told = service_fault(e.InvalidError(words), "for something", Missing.APP)
    assert told is not None
    assert SECRET not in told.message
    assert PROMPT not in told.message
    assert words.split()[0] in told.message


def test_a_long_text_is_cut() -> None:
    told = service_fault(e.InvalidError("word " * 1000), "for something", Missing.APP)
    assert told is not None
    assert len(told.message) < 500


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), OSError(28, "No space left on device")])
def test_what_is_not_the_sdk_s_is_left_alone(error: Exception) -> None:
    assert service_fault(error, "for something", Missing.APP) is None


def test_a_failure_that_is_known_already_stays_as_it_is() -> None:
    known = ModalServiceError(ModalFault.CALL_LOST, "said")
    assert service_fault(known, "for something", Missing.APP) is known


def test_every_kind_says_what_to_do() -> None:
    assert set(ADVICE) == set(ModalFault)
