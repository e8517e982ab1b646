"""Takes feedback in: looks up what the checks need, and stores what passes them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from claas_gateway.access.callers import Caller
from claas_gateway.directory.models import Adapter
from claas_gateway.errors import Conflicting, GatewayError, NotFound, TooLarge
from claas_gateway.feedback.passes import new_batch
from claas_gateway.feedback.plan.checks import Fault, common_training, rollout_fault, sample_size
from claas_gateway.feedback.plan.samples import LARGEST_SECRET_BYTES, of_adapter
from claas_gateway.feedback.plan.training import without_claas_default
from claas_gateway.feedback.wire import FeedbackBody, FeedbackRequestBody
from claas_gateway.feedback.worker import FeedbackWorker
from claas_gateway.identifiers import Prefix, new_identifier
from claas_gateway.records import FeedbackItem, FeedbackRequest, ItemState, RequestMode, Rollout
from claas_gateway.rollouts.hashing import answer_hash, prompt_hash
from claas_gateway.services import Services
from claas_gateway.store.interface import Accepted


@dataclass(frozen=True, slots=True)
class Sent:
    """A request for feedback as it came in."""

    caller: Caller
    body: FeedbackRequestBody
    raw: JsonValue
    """The body as the client sent it."""
    mode: RequestMode
    idempotency_key: str | None = None

    @property
    def owner(self) -> str:
        """The API key. Secrets of several adapters may have entries of the same name, which are different keys."""
        caller = self.caller
        return caller.key_name if caller.adapter is None else f"{caller.adapter}/{caller.key_name}"

    @property
    def body_hash(self) -> str:
        """Hash of the body, whatever the order of its fields."""
        canonical = json.dumps(self.raw, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


class Intake:
    """Stores feedback."""

    def __init__(self, services: Services, worker: FeedbackWorker) -> None:
        self._services = services
        self._worker = worker

    async def take(self, sent: Sent) -> Accepted:
        """Store the request's items and wake the worker. Raises GatewayError, and nothing is stored then."""
        bodies = sent.body.requests
        training = common_training(bodies)
        adapter, missing = self._adapter(sent)
        earlier = await self._earlier(sent, adapter)
        if earlier is not None:
            return earlier
        allow = adapter is not None and adapter.found.spec.feedback.allow_reconstructed
        found = [await self._rollout(sent.caller, adapter, body) for body in bodies]
        rollouts = [rollout and of_adapter(rollout, adapter.created if adapter else None) for rollout in found]
        faults = [
            rollout_fault(body, rollout, allow_reconstructed=allow)
            for body, rollout in zip(bodies, rollouts, strict=True)
        ]
        if adapter is None:
            raise next((fault.error() for fault in faults if fault is not None), missing)
        if adapter.samples_from_service:
            training = without_claas_default(training)
        accepted = await self._store(sent, adapter, training, rollouts, faults)
        if not accepted.repeated:
            self._count(accepted)
            self._worker.wake(adapter.namespace, adapter.name, at_once=sent.mode is RequestMode.SYNC)
        return accepted

    def _adapter(self, sent: Sent) -> tuple[Adapter | None, GatewayError]:
        """The adapter; if there is none, the error to give when nothing else is wrong."""
        lora_id = sent.body.requests[0].lora_id
        missing = NotFound(f"LoRA not found: {lora_id}")
        try:
            target = self._services.directory.resolve(lora_id, sent.caller.namespace, sent.caller.adapter)
        except NotFound:
            return None, missing
        return (target if isinstance(target, Adapter) else None), missing

    async def _earlier(self, sent: Sent, adapter: Adapter | None) -> Accepted | None:
        """The request that came with the same idempotency key before; its answers may be deleted by now."""
        if sent.idempotency_key is None or adapter is None:
            return None
        store = self._services.store.feedback
        earlier = await store.by_key(adapter.namespace, sent.owner, sent.idempotency_key)
        if earlier is not None and earlier.request.body_hash != sent.body_hash:
            raise Conflicting("this Idempotency-Key was used with another body: use a new key for a new request")
        return earlier

    async def _rollout(self, caller: Caller, adapter: Adapter | None, body: FeedbackBody) -> Rollout | None:
        store = self._services.store.rollouts
        namespace = adapter.namespace if adapter else caller.namespace
        name = adapter.name if adapter else caller.adapter
        if body.rollout_id:
            found = await store.get(body.rollout_id)
            of_adapter = found is not None and (
                adapter is None or (found.namespace, found.adapter) == (namespace, name)
            )
            return found if found and of_adapter and caller.sees(found.namespace, found.adapter) else None
        assert body.response is not None
        assert body.prompt is not None
        return await store.find(namespace, name, answer_hash(body.response), prompt_hash(body.prompt))

    async def _store(
        self,
        sent: Sent,
        adapter: Adapter,
        training: dict[str, JsonValue],
        rollouts: Sequence[Rollout | None],
        faults: list[Fault | None],
    ) -> Accepted:
        """Build and store the records."""
        now = self._services.clock()
        request = FeedbackRequest(
            id=new_identifier(Prefix.REQUEST, now.timestamp()),
            namespace=adapter.namespace,
            adapter=adapter.name,
            lora_id=sent.body.requests[0].lora_id,
            mode=sent.mode,
            created=now,
            body_hash=sent.body_hash,
            key_name=sent.owner,
            idempotency_key=sent.idempotency_key,
        )
        items: list[FeedbackItem] = []
        size = 0
        most_bytes = None if self._worker.volumes.claim_for(adapter) else LARGEST_SECRET_BYTES
        for position, (body, rollout) in enumerate(zip(sent.body.requests, rollouts, strict=True)):
            item = _item(request, position, body, rollout, training)
            fault = faults[position]
            if fault is None and rollout is not None:
                # In a thread: many long answers take seconds, and everybody's streams would stand still.
                measured = await asyncio.to_thread(sample_size, item, rollout, most_bytes)
                if isinstance(measured, Fault):
                    fault = faults[position] = measured
                else:
                    size += measured + 1
            items.append(item if fault is None else _refused(item, fault))
        good = [item for item in items if item.state is ItemState.STORED]
        if not good:
            raise next(fault.error() for fault in faults if fault is not None)
        if sent.mode is RequestMode.ASYNC:
            return await self._services.store.feedback.accept(request, items)
        if most_bytes is not None and size > most_bytes:
            raise TooLarge(
                f"the batch takes {size} bytes as samples, and one step holds {most_bytes}: send it in parts, or with"
                " `Prefer: respond-async`, which cuts batches by size"
            )
        batch = new_batch(adapter, good[0], now)
        batched = [
            replace(item, state=ItemState.BATCHED, batch_id=batch.id) if item.state is ItemState.STORED else item
            for item in items
        ]
        return await self._services.store.feedback.accept(request, batched, [batch])

    def _count(self, accepted: Accepted) -> None:
        for item in accepted.items:
            state = ItemState.REFUSED if item.state is ItemState.REFUSED else ItemState.STORED
            self._services.metrics.items.labels(item.namespace, item.adapter, state.value).inc()


def _item(
    request: FeedbackRequest,
    position: int,
    body: FeedbackBody,
    rollout: Rollout | None,
    training: dict[str, JsonValue],
) -> FeedbackItem:
    return FeedbackItem(
        id=new_identifier(Prefix.ITEM, request.created.timestamp()),
        request_id=request.id,
        position=position,
        namespace=request.namespace,
        adapter=request.adapter,
        created=request.created,
        feedback=body.feedback,
        state=ItemState.STORED,
        rollout_id=rollout.id if rollout else None,
        correction=body.correction,
        rating=body.rating,
        tags=tuple(body.tags),
        author=body.author,
        user=body.user or (rollout.user if rollout else None),
        training=training,
    )


def _refused(item: FeedbackItem, fault: Fault) -> FeedbackItem:
    return replace(item, state=ItemState.REFUSED, reason=fault.refusal.value, message=fault.message)
