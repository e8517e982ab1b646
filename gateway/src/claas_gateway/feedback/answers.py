"""The answers about stored feedback, from what is stored."""

from __future__ import annotations

from claas_gateway.feedback.plan.following import Refusal
from claas_gateway.feedback.wire import (
    DistillResult,
    FeedbackResponse,
    ItemAnswer,
    ItemDetail,
    Paused,
    RefusedResponse,
    TimingMs,
)
from claas_gateway.records import FeedbackBatch, FeedbackItem, ItemState
from claas_gateway.store.interface import Accepted

FINAL = frozenset({ItemState.IN_VERSION, ItemState.REFUSED})
ACCEPTED = "accepted"
REFUSED = "refused"
_CLAAS_NAMES = {
    "total_loss": "loss",
    "distill_loss": "divergence",
    "kl_reg": "kl_to_base",
    "mean_is_ratio": "ratio_mean",
    "clip_fraction": "clipped_fraction",
}
"""CLaaS's names of measurements, and the trainer's."""
_SAMPLED_FROM = "tinker://"
"""Addresses of weights that a service samples from; others are where servers fetch them."""


def is_final(accepted: Accepted) -> bool:
    """Whether each item has come to its end."""
    return all(item.state in FINAL for item in accepted.items)


def learned_in(accepted: Accepted) -> str | None:
    """The batch whose step made a version of its items."""
    batches = (item.batch_id for item in accepted.items if item.state is ItemState.IN_VERSION)
    return next(batches, None)


def response(accepted: Accepted, batch: FeedbackBatch | None) -> FeedbackResponse:
    """The answer to a request. `batch`: the one that made a version of its items; without it a step is not told
    of."""
    request, items = accepted.request, accepted.items
    place = f"/v1/feedback/{request.id}"
    size = sum(item.state is not ItemState.REFUSED for item in items)
    answer = FeedbackResponse(
        status=ACCEPTED,
        request_id=request.id,
        lora_id=request.lora_id,
        feedback_log_path=place,
        status_url=place,
        batch_size=size,
        items=[item_answer(item) for item in items],
    )
    if not is_final(accepted):
        return answer
    if batch is None:
        return answer if learned_in(accepted) else answer.model_copy(update={"status": REFUSED})
    result = DistillResult(lora_id=request.lora_id, metadata=_metadata(batch, size))
    timings = batch.timings
    switched = _sampled_from(batch) is not None and batch.served is True
    return answer.model_copy(
        update={
            "status": "ok",
            "distill_result": result,
            "vllm": Paused(slept="sleep" in timings, woke="wake" in timings or switched),
            "timing_ms": _timing(accepted, batch, "swap" if switched else "wake"),
        }
    )


def refusal(accepted: Accepted) -> tuple[int, RefusedResponse]:
    """HTTP status and answer for a request none of whose items was learned from."""
    bad = accepted.items[-1]
    status = 422 if bad.reason == Refusal.INVALID_SAMPLE else 500
    detail = f"Feedback update failed in phase 'distill': {bad.reason}: {bad.message}"
    told = response(accepted, None).model_dump()
    return status, RefusedResponse.model_validate({**told, "detail": detail})


def item_answer(item: FeedbackItem) -> ItemAnswer:
    """How far an item has come."""
    return ItemAnswer(id=item.id, state=item.state, version=item.version, reason=item.reason, message=item.message)


def item_detail(item: FeedbackItem) -> ItemDetail:
    """All about an item."""
    return ItemDetail(
        **item_answer(item).model_dump(),
        request_id=item.request_id,
        namespace=item.namespace,
        adapter=item.adapter,
        created=item.created.isoformat(),
        rollout_id=item.rollout_id,
        feedback=item.feedback,
        correction=item.correction,
        rating=item.rating,
        tags=list(item.tags),
        author=item.author,
        user=item.user,
        batch_id=item.batch_id,
        answer_after=item.answer_after,
    )


def _metadata(batch: FeedbackBatch, size: int) -> dict[str, int | float | str]:
    """The trainer's measurements, beside them CLaaS's names.

    Not those of its Tinker backend's own loss (`adv_mean`, and with it `kl_mean`, `effective_kl_coef` and so on):
    there are no advantages here. CLaaS's harness then reads the others, as of every backend.
    """
    metrics = batch.metrics
    named: dict[str, int | float | str] = {name: float(value) for name, value in metrics.items()}
    named |= {claas: float(metrics.get(ours, 0.0)) for claas, ours in _CLAAS_NAMES.items()}
    tokens = int(metrics.get("tokens", 0))
    named |= {"tokens_processed": tokens, "completion_len": tokens, "batch_size": size}
    if batch.version is not None:
        named["step"] = int(metrics.get("step", batch.version))
    path = _sampled_from(batch)
    if path is not None:
        named["sampler_weights_path"] = path
    return named


def _sampled_from(batch: FeedbackBatch) -> str | None:
    """Address of the weights in the service that samples from them; None: no service does."""
    return batch.weights if (batch.weights or "").startswith(_SAMPLED_FROM) else None


def _timing(accepted: Accepted, batch: FeedbackBatch, waking: str) -> TimingMs:
    def milliseconds(*names: str) -> int:
        return round(1000 * sum(batch.timings.get(name, 0.0) for name in names))

    total = batch.accounted - accepted.request.created if batch.accounted else None
    return TimingMs(
        total=round(1000 * total.total_seconds()) if total else 0,
        distill=milliseconds("load", "step", "release"),
        sleep=milliseconds("sleep"),
        wake=milliseconds(waking),
        save=milliseconds("publish"),
    )
