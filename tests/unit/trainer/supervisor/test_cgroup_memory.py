"""The kernel's count of processes that it ended for memory, as both versions of cgroups show it in a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from claas_trainer.supervisor.cgroup_memory import oom_kills

FILES: list[tuple[str, dict[str, str], int]] = [
    ("v2", {"memory.events": "low 0\nhigh 3\nmax 81\noom 2\noom_kill 2\noom_group_kill 0\n"}, 2),
    ("v1", {"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"}, 3),
    ("v1 of an old kernel", {"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, 0),
    ("both, with the controller in v1", {"memory.events": "", "memory/memory.oom_control": "oom_kill 1\n"}, 1),
    ("garbage", {"memory.events": "what is this\n"}, 0),
    ("nothing", {}, 0),
]


@pytest.mark.parametrize(("files", "expected"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_kills_are_counted_by(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert oom_kills(tmp_path) == expected
