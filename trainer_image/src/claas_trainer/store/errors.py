"""Maps operating system errors on a volume to failure reasons."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claas_contract.outcome import FailureReason
from claas_trainer.errors import StoreError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_AWAY = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.EREMOTEIO,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ESHUTDOWN,
        errno.ENODEV,
        errno.ENXIO,
        errno.EAGAIN,
        errno.EBUSY,
    }
)
"""Errors of a network volume or its disk that does not answer; the data may be intact."""


def errno_name(error: OSError) -> str:
    """Symbolic name of the error, such as `ENOSPC`."""
    return errno.errorcode.get(error.errno or 0, "unknown error")


def store_error(error: OSError, where: Path, doing: str = "") -> StoreError:
    """A StoreError with reason and remedy; `doing` says what failed, such as `syncing a folder`."""
    place = f"{where}: {doing}: " if doing else f"{where}: "
    name = errno_name(error)
    if error.errno in _FULL:
        return StoreError(
            FailureReason.STORAGE_FULL, f"{place}no space left ({name}); enlarge the volume or remove old versions"
        )
    if error.errno in _READ_ONLY:
        return StoreError(
            FailureReason.STORAGE_READ_ONLY,
            f"{place}no access ({name}); mount the volume read-write and let the pod's fsGroup read and write it",
        )
    if error.errno in _AWAY:
        return StoreError(
            FailureReason.STORAGE_FAILED,
            f"{place}the volume does not answer ({name}); look at its server or disk, and at the node's mount",
        )
    return StoreError(FailureReason.STORAGE_FAILED, f"{place}{name}; look at the volume")


def is_storage_fault(error: OSError) -> bool:
    """Whether the error means that a volume is full or read-only."""
    return error.errno in _FULL | _READ_ONLY


def passing_fault(error: BaseException) -> OSError | None:
    """The volume's error behind an exception, if it may pass by itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _AWAY:
            return cause
        cause = cause.__cause__
    return None


@contextmanager
def storage_errors(where: Path, doing: str = "") -> Iterator[None]:
    """Context manager: turns an OSError into a StoreError."""
    try:
        yield
    except OSError as error:
        raise store_error(error, where, doing) from error
