"""A small training step by the SDK, for the peer's tests."""

from collections.abc import Callable

import tinker
import torch
from tinker import types

from tests.peers.tinker.server import TinkerPeer

RANK = 4
TOKENS = list(range(20, 44))
ADAM = types.AdamParams(learning_rate=1e-2, weight_decay=0.1, grad_clip_norm=1.0)
Connect = Callable[[TinkerPeer], tinker.ServiceClient]


def wide_datum(seed: int) -> types.Datum:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 250, (len(TOKENS), 5), generator=generator)
    return types.Datum(
        model_input=types.ModelInput.from_ints(TOKENS),
        loss_fn_inputs={"target_tokens": types.TensorData.from_torch(targets)},
    )


def entropy_like(data: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    del data
    loss = torch.stack([(one.exp() * one).sum() for one in logprobs]).sum()
    return loss, {"mine:sum": float(loss.detach())}


def fresh(service: tinker.ServiceClient, peer: TinkerPeer, seed: int = 1) -> tinker.TrainingClient:
    return service.create_lora_training_client(peer.model_name, rank=RANK, seed=seed, train_unembed=False).result()


def step(client: tinker.TrainingClient, seed: int) -> float:
    """The loss of one custom step."""
    backward = client.forward_backward_custom([wide_datum(seed), wide_datum(seed + 100)], entropy_like)
    client.optim_step(ADAM).result()
    return backward.result().metrics["loss:sum"]


def logprobs(client: tinker.TrainingClient) -> torch.Tensor:
    output = client.forward([wide_datum(7)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"]
    return output.to_torch().reshape(len(TOKENS), 5)
