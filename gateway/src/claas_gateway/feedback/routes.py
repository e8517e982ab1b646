"""The routes of feedback."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.responses import JSONResponse

from claas_gateway.access.callers import Caller
from claas_gateway.access.dependency import caller_of
from claas_gateway.directory.models import Adapter
from claas_gateway.errors import NotFound
from claas_gateway.feedback.answers import (
    ACCEPTED,
    REFUSED,
    is_final,
    item_detail,
    learned_in,
    refusal,
    response,
)
from claas_gateway.feedback.intake import Intake, Sent
from claas_gateway.feedback.queue import told as told_of
from claas_gateway.feedback.wire import (
    FeedbackRequestBody,
    FeedbackResponse,
    ItemDetail,
    RefusedResponse,
    ScoreBody,
    VersionFeedback,
)
from claas_gateway.feedback.worker import FeedbackWorker
from claas_gateway.records import ProbeScore, RequestMode
from claas_gateway.services import Services
from claas_gateway.store.interface import Accepted

log = logging.getLogger(__name__)

Admitted = Annotated[Caller, Depends(caller_of)]
_LARGEST_VERSION = 2**31 - 1
VersionNumber = Annotated[int, Path(ge=0, le=_LARGEST_VERSION)]
ProbeName = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
IdempotencyKey = Annotated[str | None, Header(max_length=256, pattern=r"^[\x21-\x7e]+$")]
_ERRORS: dict[int | str, dict[str, object]] = {
    202: {"model": FeedbackResponse, "description": "Stored; the step is still to come"},
    400: {"description": "Items differ in adapter or training settings"},
    404: {"description": "No such answer, or no such adapter"},
    409: {"description": "The idempotency key was used with another body"},
    413: {"description": "More than one step holds"},
    500: {"model": RefusedResponse, "description": "The step failed for good"},
}


def router(services: Services, worker: FeedbackWorker) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["feedback"])
    intake = Intake(services, worker)

    @routes.post("/v1/feedback", response_model=FeedbackResponse, responses=_ERRORS)
    async def give(
        request: Request,
        body: FeedbackRequestBody,
        caller: Admitted,
        prefer: Annotated[list[str] | None, Header()] = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Train on feedback, and wait for the step. With `Prefer: respond-async` it is stored and answered with 202
        at once; so it is when the step takes longer than the gateway waits."""
        at_once = "respond-async" in _preferences(prefer or [])
        mode = RequestMode.ASYNC if at_once else RequestMode.SYNC
        accepted = await intake.take(Sent(caller, body, await request.json(), mode, idempotency_key))
        if not at_once:
            accepted = await _finished(services, worker, accepted)
        answer = await _answer(services, accepted, waited=not at_once)
        if at_once:
            answer.headers["Preference-Applied"] = "respond-async"
        return answer

    @routes.get("/v1/feedback/{feedback_id}", response_model=ItemDetail | FeedbackResponse)
    async def look(feedback_id: str, caller: Admitted) -> ItemDetail | FeedbackResponse:
        """How far an item of feedback, or a request with its items, has come."""
        if not feedback_id.isprintable():
            raise NotFound("no such feedback")
        item = await services.store.feedback.item(feedback_id)
        if item is not None and caller.sees(item.namespace, item.adapter):
            return item_detail(item)
        accepted = await services.store.feedback.request(feedback_id)
        if accepted is not None and caller.sees(accepted.request.namespace, accepted.request.adapter):
            return await _told(services, accepted)
        raise NotFound("no such feedback")

    @routes.get("/v1/versions/{adapter:path}/{version}/feedback", response_model=VersionFeedback)
    async def learned(adapter: str, version: VersionNumber, caller: Admitted) -> VersionFeedback:
        """The items that a version of an adapter learned from."""
        namespace, name = _place(services, adapter, caller)
        items = await services.store.feedback.items_of_version(namespace, name, version)
        details = [item_detail(item) for item in items]
        return VersionFeedback(namespace=namespace, adapter=name, version=version, items=details)

    @routes.put("/v1/versions/{adapter:path}/{version}/probes/{name}", status_code=204)
    async def score(adapter: str, version: VersionNumber, name: ProbeName, body: ScoreBody, caller: Admitted) -> None:
        """Write down a score that was measured on a version, for the dashboard; an earlier one of that name is
        replaced."""
        namespace, adapter_name = _place(services, adapter, caller)
        history = services.store.history
        if all(seen.number != version for seen in await history.versions(namespace, adapter_name)):
            raise NotFound(f"no such version of {adapter}: {version}")
        await history.add_score(ProbeScore(namespace, adapter_name, version, name, body.value, services.clock()))

    return routes


def _preferences(headers: list[str]) -> set[str]:
    """The preferences of `Prefer` (RFC 7240), without their parameters."""
    named = (part.split(";")[0].split("=")[0] for header in headers for part in header.split(","))
    return {name.strip().lower() for name in named}


def _place(services: Services, adapter: str, caller: Caller) -> tuple[str, str]:
    """Namespace and name of an adapter, by any of its names; by its name alone if it is gone."""
    try:
        target = services.directory.resolve(adapter, caller.namespace, caller.adapter)
    except NotFound:
        target = None
    if isinstance(target, Adapter):
        return target.namespace, target.name
    if caller.namespace is not None and caller.sees(caller.namespace, adapter) and adapter.isprintable():
        return caller.namespace, adapter
    raise NotFound(f"LoRA not found: {adapter}")


async def _finished(services: Services, worker: FeedbackWorker, accepted: Accepted) -> Accepted:
    """The request when all its items have come to their end, or as it is when nobody should wait any longer."""
    request, waiters = accepted.request, worker.waiters
    loop = asyncio.get_running_loop()
    deadline = loop.time() + services.settings.feedback_wait_seconds
    with waiters.on(request.id, request.namespace, request.adapter) as worth_a_look:
        while True:
            worth_a_look.clear()
            try:
                accepted = await services.store.feedback.request(request.id) or accepted
            except Exception as error:  # noqa: BLE001  (it is stored: no failure may have the client send it again)
                log.warning("feedback %s can't be looked at: %s", request.id, told_of(error))
            if is_final(accepted) or waiters.ending:
                return accepted
            try:
                async with asyncio.timeout_at(deadline):
                    await worth_a_look.wait()
            except TimeoutError:
                return accepted


async def _told(services: Services, accepted: Accepted) -> FeedbackResponse:
    batch_id = learned_in(accepted)
    return response(accepted, await services.store.batches.get(batch_id) if batch_id else None)


async def _answer(services: Services, accepted: Accepted, *, waited: bool) -> JSONResponse:
    """200 with the step, 202 while it is still to come or can't be told of, or why there was none."""
    try:
        told = await _told(services, accepted)
    except Exception as error:  # noqa: BLE001  (it is stored: no failure may have the client send it again)
        log.warning("the step of feedback %s can't be looked at: %s", accepted.request.id, told_of(error))
        told = response(accepted, None)
    if waited and told.status == REFUSED:
        status, refused = refusal(accepted)
        return JSONResponse(refused.model_dump(mode="json"), status)
    status = 200 if waited and told.status != ACCEPTED else 202
    answer = JSONResponse(told.model_dump(mode="json"), status)
    if status == 202:
        answer.headers["Location"] = told.status_url
    return answer
