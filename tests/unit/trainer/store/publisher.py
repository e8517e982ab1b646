"""Publishes one version after another until it is killed."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.store.content import Bytes
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.versions import VersionStore

if __name__ == "__main__":
    store = VersionStore(Path(sys.argv[1]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for number in range(200):
        record = VersionRecord(
            number=number,
            lora_id="a",
            created=datetime.now(UTC),
            jobs=[JobIdentity(namespace="team", name="job", uid=f"job-{number}", attempt=1)],
            engine="local",
            base_model="base",
            lora=LoraSpec(),
        )
        files = {f"file-{index}": Bytes(bytes([number]) * 200_000) for index in range(4)}
        store.publish(record, dict(files), owner="writer")
