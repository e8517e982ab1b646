"""`python supervisor.py SPEC`: mounts Volumes, runs one container's process, and leaves nothing of it behind.

It runs by itself, with the standard library alone. Orders come by a pipe on its standard input, a letter each: T asks
the process to end, K kills it with all that it started. The pipe's end means that the peer is gone, and kills too.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str, flags: int) -> None:
    if LIBC.mount(source.encode(), str(target).encode(), kind.encode(), flags, None):
        error = ctypes.get_errno()
        raise OSError(error, f"cannot mount {source} at {target}: {os.strerror(error)}")


def enter_root(root: Path, binds: list[list[str]]) -> None:
    """Make a root that shows this machine's, with the Volumes at their places, and go there."""
    mount("none", Path("/"), "", MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", 0)
    for entry in sorted(Path("/").iterdir()):
        here = root / entry.name
        if entry.is_symlink():
            here.symlink_to(entry.readlink())
        elif entry.is_dir():
            here.mkdir()
            mount(str(entry), here, "", MS_BIND | MS_REC)
    for source, place, mode in binds:
        here = root / place.lstrip("/")
        here.mkdir(parents=True, exist_ok=True)
        mount(source, here, "", MS_BIND)
        if mode == "ro":
            mount("none", here, "", MS_REMOUNT | MS_BIND | MS_RDONLY)
    os.chroot(root)


def link(binds: list[list[str]]) -> None:
    """Where nothing can be mounted: a symbolic link at each Volume's place."""
    for source, place, _ in binds:
        here = Path(place)
        if here.is_symlink() and not os.access(here.parent, os.W_OK):
            here = here.readlink()  # the image has it lead to a folder where we may write
        here.parent.mkdir(parents=True, exist_ok=True)
        if here.is_symlink() or not here.exists():
            here.unlink(missing_ok=True)
        else:
            here.rmdir()
        here.symlink_to(source)


def descendants(process: int) -> list[int]:
    """All processes that descend from one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [process]
    for one in found:
        found += [pid for pid, parent in parents.items() if parent == one]
    return found[1:]


def kill_all() -> None:
    while left := descendants(os.getpid()):  # orphans come to this process
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            os.wait()
        except ChildProcessError:
            return


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the container's processes would inherit
    if spec["root"]:
        enter_root(Path(spec["root"]), spec["binds"])
    else:
        link(spec["binds"])
    process = subprocess.Popen(spec["command"], env=spec["environment"], cwd=spec["folder"], stdin=subprocess.DEVNULL)
    ended = os.pidfd_open(process.pid)
    while True:
        ready, _, _ = select.select([0, ended], [], [])
        if ended in ready:
            code = process.wait()
            break
        order = os.read(0, 1)
        if order == b"T":
            process.terminate()
        else:
            code = -signal.SIGKILL
            break
    kill_all()
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
