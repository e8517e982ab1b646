"""Models that are a head at most, to score features with."""

from __future__ import annotations

import torch
from torch import Tensor

from claas_trainer.sdpo.batch import TokenBatch
from claas_trainer.sdpo.parameters import AdapterParameters
from claas_trainer.sdpo.policy import Network, PolicyModel, StudentPass

CPU = torch.device("cpu")


class LogitsModel(PolicyModel):
    """Its features are logits; it has no forward. `widest`: the most rows whose logits were there at once."""

    def __init__(self) -> None:
        self.device = CPU
        self.widest = 0

    def logits(self, features: Tensor) -> Tensor:
        self.widest = max(self.widest, len(features))
        return features.clone()

    def features_gradient(self, gradient: Tensor) -> Tensor:
        return gradient

    def place(self, masters: Tensor) -> AdapterParameters:
        raise NotImplementedError

    def clear(self) -> None:
        raise NotImplementedError

    def refresh(self, average: Tensor | None = None) -> None:
        raise NotImplementedError

    def features(self, batch: TokenBatch, network: Network) -> Tensor:
        raise NotImplementedError

    def student(self, batch: TokenBatch) -> StudentPass:
        raise NotImplementedError


class HeadedModel(LogitsModel):
    """Features that a head makes logits of."""

    def __init__(self, head: Tensor) -> None:
        super().__init__()
        self.head = head

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.head.t()

    def features_gradient(self, gradient: Tensor) -> Tensor:
        return gradient @ self.head
