"""One machine holds one full cluster: a second state folder is refused while the first one's runs."""

import sys
from pathlib import Path

import pytest

from tests.cluster.errors import PrerequisiteError
from tests.cluster.host import process, sweep
from tests.cluster.layout import ClusterFolders


def test_a_second_state_folder_is_refused_only_while_the_first_ones_cluster_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "MACHINE_MARKER", tmp_path / "marker")
    first, second = ClusterFolders(tmp_path / "one" / "cluster"), ClusterFolders(tmp_path / "two" / "cluster")
    sweep.claim_machine(first)
    sleeper = process.start(
        "etcd",
        [sys.executable, "-c", "import time; time.sleep(60)"],
        log_path=tmp_path / "log",
        record_folder=first.records,
    )
    try:
        sweep.claim_machine(first)
        with pytest.raises(PrerequisiteError, match=f"CLAAS_CACHE={tmp_path / 'one'}"):
            sweep.claim_machine(second)
    finally:
        process.stop(sleeper, grace_seconds=5)
    sweep.claim_machine(second)
