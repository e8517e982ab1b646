"""What an operating system error on the volume means."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claas_crds.contract import FailureReason
from claas_trainer.errors import StoreError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def store_error(error: OSError, where: Path) -> StoreError:
    """The error with its reason and what to do."""
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    if error.errno in _FULL:
        return StoreError(
            FailureReason.STORAGE_FULL, f"{where}: no space left ({name}); enlarge the volume or remove old versions"
        )
    if error.errno in _READ_ONLY:
        return StoreError(
            FailureReason.STORAGE_READ_ONLY,
            f"{where}: no access ({name}); mount the volume read-write and let the pod's fsGroup read and write it",
        )
    return StoreError(FailureReason.STORAGE_FAILED, f"{where}: {name}; look at the volume")


def is_storage_fault(error: OSError) -> bool:
    """Whether it says that a volume is full or can't be written, which nothing but a volume says."""
    return error.errno in _FULL | _READ_ONLY


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError."""
    try:
        yield
    except OSError as error:
        raise store_error(error, where) from error
