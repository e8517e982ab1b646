"""The frozen teacher: the base model, with the adapter off."""

from __future__ import annotations

import torch
from torch import Tensor

from claas_trainer.batch import PolicyModel, TokenBatch
from claas_trainer.teachers.base import Teacher


class FrozenTeacher(Teacher):
    """The base model itself; it never moves, whatever the adapter learns."""

    def logits(self, model: PolicyModel, batch: TokenBatch) -> Tensor:
        with torch.no_grad(), model.adapter_off():
            return model.response_logits(batch)
