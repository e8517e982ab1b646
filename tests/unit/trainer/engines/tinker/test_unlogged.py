"""Failures of the service that nobody waits for any more are not logged in its own words."""

from __future__ import annotations

import logging

import httpx
import pytest
import tinker

import claas_tinker_client.faults  # noqa: F401 - what is tested happens at its import

WORDS = "the service quotes something private"


def test_only_failures_of_other_origin_reach_asyncio_s_log(caplog: pytest.LogCaptureFixture) -> None:
    request = httpx.Request("POST", "http://service")
    refused = tinker.BadRequestError(WORDS, response=httpx.Response(400, request=request), body=None)
    poisoned = RuntimeError("a previous request failed")
    poisoned.__cause__ = refused
    for error in (refused, poisoned, ValueError("a bug")):
        logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=error)
    assert "a bug" in caplog.text
    assert WORDS not in caplog.text
