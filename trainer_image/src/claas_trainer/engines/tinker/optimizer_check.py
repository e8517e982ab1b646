"""Whether the service restores Adam's state with a checkpoint, which it has been seen to lose without a word.

A client of its own loads the checkpoint and takes a step with a gradient of zero. A restored Adam goes on by its
momentum, and log-probabilities change; a fresh one does not move. Nothing of that client is kept.
"""

from __future__ import annotations

import asyncio

import tinker
import torch
from tinker import types
from torch import Tensor

from claas_bounded.waits import Deadline
from claas_tinker_client.connection import TinkerConnection
from claas_tinker_client.errors import ServiceFault, TinkerServiceError
from claas_trainer.logs import log

_ASKED = "to show that it restored the optimiser"
_TOKENS = 16
_LEARNING_RATE = 0.01
"""Large, because nothing of it is kept: each weight of a restored Adam moves by about as much."""
_LEAST_CHANGE = 1e-3
_TIMES_NOISE = 10
"""A service may answer the same question a little differently; a change must be this many times larger."""


async def optimizer_restored(connection: TinkerConnection, state_path: str, deadline: Deadline) -> bool | None:
    """Whether a client from this checkpoint has its optimiser state; None if the service refuses the question. Raises
    TinkerServiceError."""
    client = await connection.run_from(state_path, deadline)
    try:
        first, second, after = await _answers(connection, client, deadline)
    except TinkerServiceError as error:
        if error.fault is not ServiceFault.REQUEST_REFUSED:
            raise
        log("optimizer-not-checked", why=error.message)
        return None
    restored = change_shows(first, second, after)
    log("optimizer-checked", restored=restored)
    return restored


def change_shows(first: Tensor, second: Tensor, after: Tensor) -> bool:
    """Whether log-probabilities changed by a step, given two measurements before it."""
    noise = (second - first).abs().max().item()
    return (after - second).abs().max().item() > max(_LEAST_CHANGE, _TIMES_NOISE * noise)


async def _answers(
    connection: TinkerConnection, client: tinker.TrainingClient, deadline: Deadline
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities twice before and once after a step without a gradient, all queued at once."""
    data = [_datum()]
    adam = types.AdamParams(learning_rate=_LEARNING_RATE, beta1=0.9, beta2=0.999, eps=1e-8)
    forwards = [client.forward(data, "cross_entropy") for _ in range(2)]
    backward, step = client.forward_backward(data, "cross_entropy"), client.optim_step(adam)
    forwards.append(client.forward(data, "cross_entropy"))

    async def told() -> list[types.ForwardBackwardOutput]:
        await asyncio.gather(backward, step)
        return list(await asyncio.gather(*forwards))

    outputs = await connection.call(_ASKED, told, deadline)
    first, second, after = (output.loss_fn_outputs[0]["logprobs"].to_torch() for output in outputs)
    return first, second, after


def _datum() -> types.Datum:
    """Tokens that every vocabulary has."""
    tokens = list(range(_TOKENS))
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_torch(torch.tensor(tokens[1:])),
            "weights": types.TensorData.from_torch(torch.zeros(len(tokens) - 1)),
        },
    )
