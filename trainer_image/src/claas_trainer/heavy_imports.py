"""Importing PyTorch and transformers: seconds of work, so what can be saved or done meanwhile is."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def first_import_of(module: str) -> Iterator[None]:
    """Around the import of a module that imports thousands: no garbage collection walks through them meanwhile (a
    quarter of the time), nor ever after (a tenth of a second each time, which may fall into the pause)."""
    if module in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def read_ahead(folder: Path) -> None:
    """Have the kernel read a model's weights while this process is busy; returns at once."""
    threading.Thread(target=_advise, args=(folder,), name="read-ahead", daemon=True).start()


def _advise(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            # Whoever needs the file will say what is wrong with it.
            continue
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        except OSError:
            continue
        finally:
            os.close(descriptor)
