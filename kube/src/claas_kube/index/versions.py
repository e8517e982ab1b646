"""The order of resourceVersions, as far as Kubernetes defines it for clients."""

from __future__ import annotations

import re

_WELL_FORMED = re.compile(r"[1-9][0-9]*")


def older(version: str, than: str) -> bool:
    """Whether a resourceVersion is older than another one of the same kind of object.

    Compared as in Kubernetes' own clients (apimachinery, util/resourceversion), as positive integers of any length.
    Other values have no order, and none is older.
    """
    if not (_WELL_FORMED.fullmatch(version) and _WELL_FORMED.fullmatch(than)):
        return False
    return (len(version), version) < (len(than), than)
