"""What each exception of the SDK means, and what its message may hold."""

from __future__ import annotations

import httpx
import pytest
import tinker
from tinker.lib.retryable_exception import RetryableException
from tinker.types import RequestErrorCategory

from claas_tinker_client.answers import AnswerWatch
from claas_tinker_client.errors import ServiceFault
from claas_tinker_client.faults import Subject, overdue, service_fault

REQUEST = httpx.Request("POST", "https://tinker.example/api/v1/optim_step")
KEY = "tml-a-key-that-appears-nowhere"


def answered(status: int, body: object = None) -> tinker.APIStatusError:
    return tinker.APIStatusError("said", response=httpx.Response(status, request=REQUEST), body=body)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def failed(category: RequestErrorCategory, message: str = "Request failed: no for self.request_id='1'") -> Exception:
    return tinker.RequestFailedError(message, "1", category)


@pytest.mark.parametrize(
    ("error", "subject", "expected"),
    [
        (answered(401), Subject.RUN, ServiceFault.CREDENTIALS_REFUSED),
        (answered(403), Subject.MODEL, ServiceFault.CREDENTIALS_REFUSED),
        (answered(402), Subject.MODEL, ServiceFault.BILLING_REQUIRED),
        (answered(429), Subject.RUN, ServiceFault.RATE_LIMITED),
        (answered(404), Subject.CHECKPOINT, ServiceFault.CHECKPOINT_EXPIRED),
        (answered(410), Subject.CHECKPOINT, ServiceFault.CHECKPOINT_EXPIRED),
        (answered(404), Subject.MODEL, ServiceFault.MODEL_RETIRED),
        (answered(410), Subject.RUN, ServiceFault.SESSION_LOST),
        (answered(400), Subject.RUN, ServiceFault.REQUEST_REFUSED),
        (answered(422), Subject.CHECKPOINT, ServiceFault.REQUEST_REFUSED),
        (answered(408), Subject.RUN, ServiceFault.UNREACHABLE),
        (answered(409), Subject.RUN, ServiceFault.UNREACHABLE),
        (answered(503), Subject.CHECKPOINT, ServiceFault.UNREACHABLE),
        (tinker.APIConnectionError(request=REQUEST), Subject.RUN, ServiceFault.UNREACHABLE),
        (tinker.APITimeoutError(request=REQUEST), Subject.RUN, ServiceFault.UNREACHABLE),
        (TimeoutError(), Subject.RUN, ServiceFault.UNREACHABLE),
        (failed(RequestErrorCategory.User), Subject.RUN, ServiceFault.REQUEST_REFUSED),
        (failed(RequestErrorCategory.Server), Subject.RUN, ServiceFault.REQUEST_FAILED),
        (failed(RequestErrorCategory.Unknown), Subject.RUN, ServiceFault.REQUEST_FAILED),
        (
            failed(RequestErrorCategory.User, "Request failed: checkpoint not found for self.request_id='1'"),
            Subject.CHECKPOINT,
            ServiceFault.CHECKPOINT_EXPIRED,
        ),
        (RetryableException(message="Promise expired/broken"), Subject.RUN, ServiceFault.SESSION_LOST),
        (
            caused(ValueError("Error retrieving result: no with status 404"), answered(404)),
            Subject.CHECKPOINT,
            ServiceFault.SESSION_LOST,
        ),
        (ValueError("Proto deserialization failed: x"), Subject.RUN, ServiceFault.REQUEST_FAILED),
        (
            caused(RuntimeError("A previous request failed; this TrainingClient is poisoned"), answered(402)),
            Subject.RUN,
            ServiceFault.BILLING_REQUIRED,
        ),
        (tinker.TinkerError("The api_key must start"), Subject.RUN, ServiceFault.CREDENTIALS_REFUSED),
        (ValueError("of a loss function"), Subject.RUN, None),
        (caused(RuntimeError("poisoned"), ValueError("of a loss function")), Subject.RUN, None),
    ],
)
def test_each_exception_of_the_sdk_is_one_fault(
    error: Exception, subject: Subject, expected: ServiceFault | None
) -> None:
    fault = service_fault(error, "for something", subject)
    assert (fault and fault.fault) == expected


def test_a_message_quotes_the_service_without_keys_and_tokens() -> None:
    body = {"detail": f"the key {KEY} may not train [17, 4711, 23]\non this model"}
    fault = service_fault(answered(400, body), "to train", Subject.RUN)
    assert fault is not None
    assert "may not train [...] on this model" in fault.message
    assert KEY not in fault.message
    assert "4711" not in fault.message


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], ServiceFault.UNREACHABLE),
        ([("/a", 402)], ServiceFault.BILLING_REQUIRED),
        ([("/a", 429), ("/heartbeat", 200)], ServiceFault.RATE_LIMITED),
        ([("/a", 429), ("/a", 200)], ServiceFault.UNREACHABLE),
        ([("/a", 429), ("/b", 503)], ServiceFault.UNREACHABLE),
        ([("/a", 503), ("/b", 402)], ServiceFault.BILLING_REQUIRED),
        ([("/config", 404), ("/retrieve_future", 408)], ServiceFault.UNREACHABLE),
    ],
)
def test_what_the_service_kept_answering_tells_why_a_call_did_not_end(
    told: list[tuple[str, int]], expected: ServiceFault
) -> None:
    watch = AnswerWatch("https://tinker.example", Clock())
    for route, status in told:
        watch.note(route, status)
    assert overdue("to train", 5, watch.failing()).fault is expected


def test_a_failure_that_is_not_tried_again_is_forgotten_and_a_streak_keeps_its_beginning() -> None:
    clock = Clock()
    watch = AnswerWatch("https://tinker.example", clock)
    for clock.now in (0.0, 30.0, 60.0):
        watch.note("/a", 503)
    failing = watch.failing()
    assert failing is not None
    assert (failing.since, failing.latest) == (0.0, 60.0)
    clock.now = 200.0
    assert watch.failing() is None
    watch.note("/a", 503)
    failing = watch.failing()
    assert failing is not None
    assert failing.since == 200.0
