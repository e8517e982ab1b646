"""Packages that the machine lacks, with an apt-get of the test's own in the real one's place."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.errors import PrerequisiteError
from tests.cluster.host import machine as host
from tests.cluster.host.machine import Tool

# It "installs" each package as a program of that name. A folder is its lock, as a file is the real one's.
APT_GET = """#!/bin/sh
test "$1" = -q || exit 2
if ! mkdir "$LOCK" 2>/dev/null; then
    echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)" >&2
    exit 100
fi
sleep 0.1
echo "$2" >> "$CALLS"
if test "$2" = install; then
    shift 4
    for package; do printf '#!/bin/sh\n' > "$PROGRAMS/$package"; chmod +x "$PROGRAMS/$package"; done
fi
rmdir "$LOCK"
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "apt-get").write_text(APT_GET)
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name, path in (("PROGRAMS", programs), ("LOCK", tmp_path / "lock"), ("CALLS", tmp_path / "calls")):
        monkeypatch.setenv(name, str(path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def test_cluster_and_images_may_ask_for_packages_at_the_same_time(machine: Path) -> None:
    wanted = [[Tool(f"claas-{who}-{number}", f"claas-{who}-{number}") for number in range(2)] for who in ("a", "b")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(host.ensure_tools, wanted))
    assert (machine / "calls").read_text().split() == ["update", "install"] * 2


def test_apt_get_is_waited_for_while_another_program_has_its_lock(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "APT_RETRY_SECONDS", 0.05)
    (machine / "lock").mkdir()
    given_back = threading.Timer(0.3, (machine / "lock").rmdir)
    given_back.start()
    host.ensure_tools([Tool("claas-late", "claas-late")])
    assert given_back.finished.is_set()
    assert (machine / "calls").read_text().split() == ["update", "install"]


def test_a_lock_that_is_never_given_back_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "lock").mkdir()
    monkeypatch.setattr(host, "APT_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(host, "APT_RETRY_SECONDS", 0.05)
    with pytest.raises(PrerequisiteError, match=r"install the packages claas-never .*Could not get lock"):
        host.ensure_tools([Tool("claas-never", "claas-never")])
