"""Running a command as in another pod: with namespaces of its own, and a /dev/shm of its own."""

from __future__ import annotations

from collections.abc import Sequence

_NAMESPACES = ["unshare", "--pid", "--fork", "--ipc", "--net", "--uts", "--mount", "--mount-proc"]
_OWN_SHM = 'mount -t tmpfs tmpfs /dev/shm && exec "$0" "$@"'


def in_own_namespaces(command: Sequence[str]) -> list[str]:
    """The command line; it takes root."""
    return [*_NAMESPACES, "sh", "-c", _OWN_SHM, *command]
