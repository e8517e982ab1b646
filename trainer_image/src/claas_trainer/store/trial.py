"""Tries the operations that publishing needs on a volume, before anything is paused.

Mounts of object stores look like file systems, but some can't rename folders (mountpoint-s3, gcsfuse) or let a rename
replace a non-empty folder (s3fs). The error names the missing operation.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claas_contract.outcome import FailureReason
from claas_trainer.errors import StoreError
from claas_trainer.store.content import Bytes, fsync_folder, write_file
from claas_trainer.store.errors import errno_name, store_error
from claas_trainer.store.staging import make_staging, staging_name

_LACKING = frozenset(
    {
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EINVAL,
        errno.EXDEV,
        errno.EPERM,
        # gcsfuse gives this error for renaming a folder with more entries than its limit.
        errno.EMFILE,
    }
)
_MOUNTS = Path("/proc/self/mountinfo")
_CONTENT = b"x"


def try_volume(versions: Path, owner: str, attempt: int) -> None:
    """Do all operations of publishing and of writing a verdict, on temporary folders. Raises StoreError."""
    first = Path()
    second = Path()
    renamed = versions / staging_name(owner, attempt)
    try:
        with _operation(versions, "making a folder", lacking=frozenset({errno.ENOSYS, errno.EOPNOTSUPP})):
            first = make_staging(versions, owner, attempt)
            second = make_staging(versions, owner, attempt)
        for folder in (first, second):
            with _operation(versions, "writing and syncing a file"):
                write_file(folder / "check", Bytes(_CONTENT))
            with _operation(versions, "syncing a folder"):
                fsync_folder(folder)
        with _operation(versions, "renaming a folder that holds files"):
            first.rename(renamed)
        with _operation(versions, "syncing a folder"):
            fsync_folder(versions)
        with _operation(versions, "listing and reading what was renamed"):
            names = {path.name for path in versions.iterdir()}
            read = (renamed / "check").read_bytes()
        if renamed.name not in names or first.name in names or read != _CONTENT:
            raise _unsuitable(versions, "listing and reading what was renamed", "it is not there at once")
        _try_to_replace(versions, second, renamed)
        with _operation(versions, "replacing a file by a rename"):
            write_file(renamed / "other", Bytes(_CONTENT))
            (renamed / "other").replace(renamed / "check")
        with _operation(versions, "removing files and folders"):
            (renamed / "check").unlink()
            renamed.rmdir()
    finally:
        for folder in (first, second, renamed):
            if folder != Path():
                shutil.rmtree(folder, ignore_errors=True)


def _try_to_replace(versions: Path, folder: Path, target: Path) -> None:
    """A rename onto a non-empty folder must fail, or else one version could replace another."""
    doing = "refusing to rename a folder onto another that holds files"
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return
        raise _error(error, versions, doing, _LACKING) from error
    raise _unsuitable(versions, doing, "it was done")


@contextmanager
def _operation(versions: Path, doing: str, lacking: frozenset[int] = _LACKING) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _error(error, versions, doing, lacking) from error


def _error(error: OSError, versions: Path, doing: str, lacking: frozenset[int]) -> StoreError:
    if error.errno in lacking:
        return _unsuitable(versions, doing, errno_name(error))
    return store_error(error, versions, doing)


def _unsuitable(versions: Path, doing: str, why: str) -> StoreError:
    kind = file_system_of(versions, _MOUNTS)
    return StoreError(
        FailureReason.STORAGE_UNSUITABLE,
        f"{versions}: {doing} failed ({why}){f' on a mount of type {kind}' if kind else ''}, and publishing needs it."
        " Mounts of object stores (s3fs, gcsfuse, mountpoint-s3) lack it: let spec.storage.claimName be a claim of a"
        " file system, such as a block device, NFS or CephFS",
    )


def file_system_of(path: Path, mounts: Path) -> str | None:
    """Type of the mount that a path is on, such as `fuse.s3fs`; None if `mounts` does not list it."""
    best: tuple[int, str] | None = None
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split(" ")
        if len(words) < 10 or "-" not in words:
            continue
        point = Path(words[4].replace("\\040", " "))
        # Of two mounts at the same path, the later one is on top.
        if path.is_relative_to(point) and (best is None or len(point.parts) >= best[0]):
            best = (len(point.parts), words[words.index("-") + 1])
    return best[1] if best else None
