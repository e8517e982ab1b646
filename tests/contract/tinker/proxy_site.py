"""A peer of the Tinker service with checkpoints of one adapter, and a proxy that answers by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import tinker
import torch
from tinker import types

from claas_crds.v1alpha1.lora import LoraSpec
from claas_tinker_client.version_file import VERSION_FILE, TinkerVersion
from claas_trainer.store.record import RECORD_FILE, VersionRecord
from tests.contract.tinker.proxy_server import ProxyServer
from tests.peers.tinker.server import TinkerPeer

RANK = 4
KEY = "tml-key-of-the-test"


@dataclass
class ProxySite:
    """A peer, checkpoints in it, and a proxy; `checkpoints[0]` is version 1."""

    peer: TinkerPeer
    checkpoints: Sequence[str]
    proxy: ProxyServer
    sessions: list[tinker.ServiceClient] = field(default_factory=list)

    def publish(self, number: int) -> Path:
        """Write a version as the trainer does; 0 is the base model."""
        folder = self.folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        path = self.checkpoints[number - 1] if number else None
        version = TinkerVersion(base_model=self.peer.model_name, rank=RANK, seed=1, step=number, sampler_path=path)
        record = VersionRecord(
            number=number, lora_id="team/tone", created=datetime.now(UTC), engine="tinker", base_model="tiny",
            lora=LoraSpec(),
        )  # fmt: skip
        (folder / VERSION_FILE).write_text(version.model_dump_json())
        (folder / RECORD_FILE).write_text(record.model_dump_json())
        return folder

    def folder(self, number: int) -> Path:
        """Where a version lies."""
        return self.proxy.storage / "versions" / str(number)

    def sampler(self, number: int) -> tinker.SamplingClient:
        """The SDK's own client for a version."""
        if not self.sessions:
            self.sessions.append(tinker.ServiceClient(base_url=self.peer.url, api_key=KEY))
        if number == 0:
            return self.sessions[0].create_sampling_client(base_model=self.peer.model_name).result()
        return self.sessions[0].create_sampling_client(model_path=self.checkpoints[number - 1]).result()


def make_checkpoints(peer: TinkerPeer, count: int) -> list[str]:
    """Take steps, each so large that its answers differ from the last one's, and keep each for sampling."""
    service = tinker.ServiceClient(base_url=peer.url, api_key=KEY)
    client = service.create_lora_training_client(peer.model_name, rank=RANK, seed=1, train_unembed=False).result()
    paths = []
    for number in range(1, count + 1):
        letters = [65 + number] * 16
        datum = types.Datum(
            model_input=types.ModelInput.from_ints(letters[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData.from_torch(torch.tensor(letters[1:])),
                "weights": types.TensorData.from_torch(torch.ones(15)),
            },
        )
        client.forward_backward([datum], "cross_entropy").result()
        client.optim_step(types.AdamParams(learning_rate=0.05)).result()
        paths.append(client.save_weights_for_sampler(f"v{number}").result().path)
    service.close("success").result(timeout=10)
    return paths
