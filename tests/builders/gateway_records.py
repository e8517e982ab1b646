"""Records of the gateway to start from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from claas_gateway.records import (
    BatchState,
    Evidence,
    FeedbackBatch,
    FeedbackItem,
    FeedbackRequest,
    ItemState,
    RequestMode,
    Rollout,
    RolloutKind,
)
from claas_gateway.rollouts.hashing import answer_hash, prompt_hash

START = datetime(2026, 11, 27, 9, 0, 0, 123456, tzinfo=UTC)


def after(seconds: float) -> datetime:
    """A time after the start."""
    return START + timedelta(seconds=seconds)


def build_rollout(
    name: str,
    *,
    namespace: str = "team",
    adapter: str | None = "coder",
    prompt: str = "What is a lease?",
    answer: str = "A promise with an end.",
    created: datetime = START,
    user: str | None = None,
    token_ids: tuple[int, ...] = (7, 151_643, 4_294_967_295),
) -> Rollout:
    """A whole rollout with token ids and log-probabilities."""
    return Rollout(
        id=name,
        namespace=namespace,
        adapter=adapter,
        request_id=f"request-of-{name}",
        choice=0,
        kind=RolloutKind.CHAT,
        created=created,
        version=3,
        user=user,
        request={"model": "coder", "messages": [{"role": "user", "content": prompt}], "temperature": 0.5},
        system_prompt="Be brief.",
        user_prompt=prompt,
        answer=answer,
        answer_hash=answer_hash(answer),
        prompt_hash=prompt_hash(prompt),
        evidence=Evidence.EXACT,
        prompt_token_ids=(1, 2, 3),
        response_token_ids=token_ids,
        response_logprobs=tuple(-0.25 * place for place in range(len(token_ids))),
        sampling={"temperature": 0.5, "top_p": 1.0},
        finish_reason="stop",
    )


def build_request(
    name: str,
    *,
    namespace: str = "team",
    key_name: str = "ci",
    key: str | None = None,
    body_hash: str = "body",
    mode: RequestMode = RequestMode.ASYNC,
) -> FeedbackRequest:
    """A request that brought feedback."""
    return FeedbackRequest(
        id=name,
        namespace=namespace,
        adapter="coder",
        lora_id="team/coder-latest",
        mode=mode,
        created=START,
        body_hash=body_hash,
        key_name=key_name,
        idempotency_key=key,
    )


def build_item(
    name: str,
    *,
    request: str = "request",
    position: int = 0,
    namespace: str = "team",
    adapter: str = "coder",
    created: datetime = START,
    state: ItemState = ItemState.STORED,
    rollout: str | None = None,
    batch: str | None = None,
    user: str | None = None,
    author: str | None = None,
    tags: tuple[str, ...] = (),
    rating: float | None = None,
    feedback: str = "Say when it ends.",
) -> FeedbackItem:
    """An item of feedback that waits for its batch, unless told otherwise."""
    return FeedbackItem(
        id=name,
        request_id=request,
        position=position,
        namespace=namespace,
        adapter=adapter,
        created=created,
        feedback=feedback,
        state=state,
        rollout_id=rollout,
        correction="A promise until noon.",
        rating=rating,
        tags=tags,
        author=author,
        user=user,
        training={"learningRate": 0.0001},
        batch_id=batch,
    )


def build_batch(
    name: str, *, namespace: str = "team", adapter: str = "coder", created: datetime = START
) -> FeedbackBatch:
    """A batch whose job is not made yet."""
    return FeedbackBatch(
        id=name,
        namespace=namespace,
        adapter=adapter,
        adapter_uid="uid-of-coder",
        created=created,
        state=BatchState.FORMED,
        training={"learningRate": 0.0001},
    )
