"""Turns a job's samples into an engine's request with token ids. Engines have no tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from claas_contract.engine import DistillBatchRequestPayload, EngineNeeds
from claas_contract.input import TrainerInput
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.step import SampleCounts
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_trainer.errors import EngineError, InputError
from claas_trainer.heavy_imports import first_import_of, read_ahead
from claas_trainer.logs import log
from claas_trainer.paths import Paths
from claas_trainer.samples.chat_template import ServerChat


@dataclass(frozen=True)
class Batch:
    """The engine's request, and counts of the samples."""

    payload: DistillBatchRequestPayload
    counts: SampleCounts
    model: Path
    """The base model's folder."""
    feedback_ids: tuple[str, ...] = ()
    """The identifiers of the samples that have one, in their order."""

    def without_versions(self, lost: Collection[int]) -> Batch:
        """The batch when these versions can't be used: the importance ratio of their samples is 1."""
        count = sum(sample.version in lost for sample in self.payload.samples)
        if not count:
            return self
        samples = tuple(
            sample.model_copy(update={"version": None}) if sample.version in lost else sample
            for sample in self.payload.samples
        )
        changed = {
            "computed": self.counts.computed - count,
            "reconstructed": self.counts.reconstructed + count,
            "lost_versions": self.counts.lost_versions + count,
        }
        return replace(
            self,
            payload=self.payload.model_copy(update={"samples": samples}),
            counts=self.counts.model_copy(update=changed),
        )

    def work_tokens(self, parent: int) -> int:
        """The tokens of the step. A forward pass under an earlier version counts as a third of a sample, which takes
        two forward passes and a backward one."""
        again = sum(each.tokens for each in self.payload.samples if each.version not in (None, parent))
        return self.payload.tokens + again // 3

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the hindsight in recorded prompts."""
        return {
            "hints_inserted": float(self.counts.hints_inserted),
            "rebuilt_conversations": float(self.counts.rebuilt_conversations),
        }


async def make_batch(
    document: TrainerInput,
    items: Sequence[DistillBatchItem],
    needs: EngineNeeds,
    paths: Paths,
    chat: ServerChat | None,
) -> Batch:
    """Check the samples against the base model and tokenise them.

    `chat`: how the servers render prompts, None if unknown. Meanwhile the kernel reads ahead the weights that the
    engine needs.

    Raises TrainerError: InvalidSampleError for samples, InputError for the model.
    """
    folder = paths.model_folder(document.model)
    if folder is not None and needs.base_weights:
        read_ahead(folder)
    try:
        with first_import_of("claas_trainer.model.hub_tokenizer"):
            from claas_trainer.model import config, hub_tokenizer  # noqa: F401 - imported once, by this thread
    except ImportError as error:
        raise EngineError(
            FailureReason.ENGINE_UNAVAILABLE,
            f"samples can't be tokenised: this image lacks {error.name}; use an image that has it",
        ) from error
    return await asyncio.to_thread(_tokenised, document, items, needs, paths, chat)


def _tokenised(
    document: TrainerInput,
    items: Sequence[DistillBatchItem],
    needs: EngineNeeds,
    paths: Paths,
    chat: ServerChat | None,
) -> Batch:
    from claas_trainer.model.config import read_config
    from claas_trainer.model.hub_tokenizer import read_tokenizer
    from claas_trainer.model.source import find_model
    from claas_trainer.samples.tokens import tokenise

    # Faults of samples should be reported within a second, before gigabytes are read.
    folder = find_model(document.model, paths, weights=needs.base_weights)
    with first_import_of("transformers"):
        tokenizer = read_tokenizer(folder)
    batch = tokenise(
        items,
        tokenizer,
        read_config(folder).limits,
        tokenizer.renderer(chat),
        require_recorded_prompt=document.training.require_recorded_prompt,
    )
    if batch.rebuilt:
        log("conversations-rebuilt", samples=",".join(map(str, batch.rebuilt)))
    try:
        payload = DistillBatchRequestPayload(
            lora_id=document.adapter.lora_id, training=document.training, samples=batch.samples
        )
    except ValidationError:
        raise InputError("adapter.lora_id: is no CLaaS identifier such as user123/coder-v1") from None
    log("tokenised", samples=len(payload.samples), tokens=payload.tokens)
    return Batch(payload, batch.counts, folder, tuple(item.id for item in items if item.id))
