"""What tells the same request from another, though texts and token ids are kept nowhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from tinker import types

from claas_trainer.sdpo.batch import TokenSample, digest
from claas_trainer.sdpo.settings import SdpoConfig


def task_digest(samples: Sequence[TokenSample], config: SdpoConfig) -> str:
    """Of a step's samples and settings. A job's settings follow its adapter's, and its samples may lie in a file, so
    both may change between two attempts; then the step of the first is not that of the second."""
    return hashlib.sha256(f"{digest(samples)} {config!r}".encode()).hexdigest()


def step_digest(data: Sequence[types.Datum], adam: types.AdamParams) -> str:
    """Of a step's requests: a run of an earlier attempt is taken up only if it was asked the same. What the service
    was asked before keeps its number, and other tokens would be scored than the loss is taken on."""
    hashed = hashlib.sha256(adam.model_dump_json().encode())
    for datum in data:
        targets = datum.loss_fn_inputs["target_tokens"]
        sparse = [targets.sparse_crow_indices, targets.sparse_col_indices]
        hashed.update(json.dumps([datum.model_input.to_ints(), list(targets.data), targets.shape, sparse]).encode())
    return hashed.hexdigest()
