"""What an operating system error on a volume means."""

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
"""A network volume, or the disk below one, that does not answer: what is on it may be as good as ever."""


def errno_name(error: OSError) -> str:
    """Such as `ENOSPC`."""
    return errno.errorcode.get(error.errno or 0, "unknown error")


def store_error(error: OSError, where: Path, doing: str = "") -> StoreError:
    """The error with its reason and what to do; `doing` says what failed, such as `syncing a folder`."""
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
    """Whether it says that a volume is full or can't be written, which nothing but a volume says."""
    return error.errno in _FULL | _READ_ONLY


def passing_fault(error: BaseException) -> OSError | None:
    """The fault of a volume behind an error, where it is one that can pass without anybody's doing."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _AWAY:
            return cause
        cause = cause.__cause__
    return None


@contextmanager
def storage_errors(where: Path, doing: str = "") -> Iterator[None]:
    """Turn an OSError of the block into a StoreError."""
    try:
        yield
    except OSError as error:
        raise store_error(error, where, doing) from error
