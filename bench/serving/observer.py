"""A third process's look at the weights that vLLM serves: their checksum, and what the trainer's forward makes of
them.

    python bench/serving/observer.py --model FOLDER --export export.json [--prompts prompts.json --adapter VERSION]

Prints JSON: `checksum`, and for each prompt log-probabilities of the asked tokens as the next ones, by the base model
(`base`) and with the adapter (`adapter`); and by the base model with everything but the stored weights in float32
(`exact`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In place of this folder, whose modules would hide others of their names.
sys.path[:1] = [str(ROOT / part) for part in ("crds/src", "contract/src", "vllm_client/src", "trainer_image/src")]

import torch

from claas_trainer.engines.local.base_model import base_fingerprint
from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.weights.layout import layer_shapes
from claas_trainer.forward.weights.shared import SharedWeights, parse_export
from claas_trainer.forward.weights.source import LayerWeights, WeightSource
from claas_trainer.model.config_shape import read_shape
from claas_trainer.model.lora import read_adapter
from claas_trainer.sdpo.batch import TokenBatch
from claas_trainer.sdpo.policy import Network


class Exact(WeightSource):
    """The same weights in float32, a layer at a time: a forward that rounds next to nothing."""

    def __init__(self, weights: SharedWeights) -> None:
        self._weights = weights
        self.shape, self.device, self.dtype = weights.shape, weights.device, torch.float32

    @property
    def resident_bytes(self) -> int:
        return 0

    def acquire(self) -> None:
        return

    def release(self) -> None:
        return

    def layer(self, index: int) -> LayerWeights:
        layer = self._weights.layer(index)
        fields = {field: getattr(layer, field) for field in layer_shapes(self.shape)}
        return LayerWeights(**{field: tensor.float() for field, tensor in fields.items()})

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self._weights.embed(ids).float()

    @property
    def final_norm(self) -> torch.Tensor:
        return self._weights.final_norm.float()

    @property
    def head(self) -> torch.Tensor:
        return self._weights.head.float()


def checksum(weights: SharedWeights) -> int:
    """Changes with any bit of any weight."""
    total = 0
    for index in range(weights.shape.layers):
        layer = weights.layer(index)
        for tensor in (layer.qkv, layer.o, layer.gate_up, layer.down, layer.input_norm, layer.post_norm):
            total = (total * 1_000_003 + _sum(tensor)) % 2**61
    for tensor in (weights.head, weights.final_norm, weights.embed(torch.arange(weights.shape.vocabulary).cuda())):
        total = (total * 1_000_003 + _sum(tensor)) % 2**61
    return total


def _sum(tensor: torch.Tensor) -> int:
    return int(tensor.contiguous().view(torch.int16).sum(dtype=torch.int64).item())


def next_logprobs(
    weights: SharedWeights, adapter: Path, prompts: list[list[int]], asked: list[list[int]]
) -> dict[str, list[list[float]]]:
    """For each prompt and each of its asked tokens."""
    read = read_adapter(adapter)
    tensors = {name: tensor.shape for name, tensor in read.tensors.items()}
    found: dict[str, list[list[float]]] = {}
    passes = (("base", weights, Network.BASE), ("adapter", weights, Network.STUDENT))
    for name, source, network in (*passes, ("exact", Exact(weights), Network.BASE)):
        model = DecoderModel(source, tensors, read.shape.rank, read.shape.alpha)
        model.place(model.layout.gather(read.tensors))
        found[name] = []
        for prompt, tokens in zip(prompts, asked, strict=True):
            batch = TokenBatch.of([prompt], [tokens[:1]], weights.device)
            logprobs = model.logits(model.features(batch, network)).log_softmax(-1)[0]
            found[name].append([logprobs[token].item() for token in tokens])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, help="JSON: prompts and asked, each a list of lists of token ids")
    parser.add_argument("--adapter", type=Path)
    options = parser.parse_args()
    shape, device = read_shape(options.model), torch.device("cuda", 0)
    digest = base_fingerprint(options.model, shape).partition(":")[2]
    torch.zeros(1, device=device)
    weights = SharedWeights(shape, device, parse_export(json.loads(options.export.read_text())), digest)
    weights.acquire()
    found: dict[str, object] = {"checksum": checksum(weights)}
    if options.prompts:
        asked = json.loads(options.prompts.read_text())
        found |= next_logprobs(weights, options.adapter, asked["prompts"], asked["asked"])
    weights.release()
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
