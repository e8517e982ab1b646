"""Training runs at a peer as attempts at a job have them, and a loss that needs no teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from tinker import types

from claas_bounded.waits import Deadline
from claas_tinker_client.connection import Account, Patience, TinkerConnection
from claas_trainer.engines.tinker.journal import Checkpoints, RemoteJournal
from claas_trainer.engines.tinker.remote_run import RemoteRun, RunStart
from claas_trainer.store.journal import RunJournal
from tests.peers.tinker.server import TinkerPeer

KEY = "tml-a-key-that-appears-nowhere"
ADAM = types.AdamParams(learning_rate=1e-2)
PATIENCE = Patience(billing=0.5, other=60.0)


def data(seed: int = 0) -> list[types.Datum]:
    """Two sequences with three targets a position."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(2):
        tokens = torch.randint(0, 250, (12,), generator=generator)
        targets = torch.randint(0, 250, (12, 3), generator=generator)
        made.append(
            types.Datum(
                model_input=types.ModelInput.from_ints(tokens.tolist()),
                loss_fn_inputs={"target_tokens": types.TensorData.from_torch(targets)},
            )
        )
    return made


def loss(_: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    return torch.stack([(one.exp() * one).sum() for one in logprobs]).sum(), {}


@dataclass
class Work:
    """Attempts at one job, each with a connection of its own."""

    peer: TinkerPeer
    folder: Path
    state_path: str | None = None
    patience: Patience = PATIENCE
    key: str = KEY
    connections: list[TinkerConnection] = field(default_factory=list)

    @property
    def start(self) -> RunStart:
        return RunStart(self.peer.model_name, 4, 1, self.state_path, "job-1-v1", "task")

    def journal(self, attempt: int) -> RemoteJournal:
        return RemoteJournal(RunJournal(self.folder, "job-1"), attempt)

    def connect(self) -> TinkerConnection:
        key_file = self.folder / "api-key"
        key_file.write_text(self.key + "\n")
        connection = TinkerConnection(Account(key_file, self.peer.url, patience=self.patience))
        self.connections.append(connection)
        return connection

    async def begin(self, attempt: int, seconds: float = 20.0) -> RemoteRun:
        return await RemoteRun.begin(self.connect(), self.journal(attempt), self.start, Deadline.after(seconds))

    async def attempt(self, number: int, seconds: float = 20.0, seed: int = 0) -> Checkpoints:
        """A whole attempt, as the engine makes it."""
        run = await self.begin(number, seconds)
        if run.found is not None:
            return run.found
        output = await run.step(data(seed), loss, ADAM)
        await run.forward(data(seed))
        return await run.save({"loss": output.metrics["loss:sum"]})

    async def close(self) -> None:
        for connection in self.connections:
            await connection.close(None)
