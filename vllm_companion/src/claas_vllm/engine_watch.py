"""Ends the server if its engine is dead and vLLM does not end it.

If the engine dies during a control call (a sleep, a load, a collective RPC), the call is never answered. vLLM closes
its port and waits for the call for ever: the process stays, and nothing restarts it.
"""

import os
import time
from collections.abc import Callable, Mapping
from threading import Thread

from claas_vllm.log import logger

GRACE_SECONDS = 10.0
"""Seconds for vLLM to end by itself; it checks its engine every 5 seconds."""
EXIT_CODE = 70
"""sysexits.h: an internal error of the software."""
_POLL_SECONDS = 1.0


def watch_engine(application: object, environment: Mapping[str, str]) -> None:
    """Watch the application's engine from a thread; does nothing without an engine, or if
    VLLM_KEEP_ALIVE_ON_ENGINE_DEATH is set."""
    engine = getattr(getattr(application, "state", None), "engine_client", None)
    if engine is None or environment.get("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "0") not in ("", "0"):
        return
    Thread(target=end_with_engine, args=(engine,), name="claas-engine-watch", daemon=True).start()


def end_with_engine(
    engine: object,
    *,
    end: Callable[[int], object] = os._exit,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """End the process once the engine has been dead for GRACE_SECONDS, then return."""
    dead_since: float | None = None
    while True:
        now = clock()
        if not _is_dead(engine):
            dead_since = None
        elif dead_since is None:
            dead_since = now
        elif now - dead_since >= GRACE_SECONDS:
            logger.error(
                "vLLM's engine has been dead for %.0f s and the server still runs; it is ended", GRACE_SECONDS
            )
            # An ordinary exit would wait for the calls that are never answered.
            end(EXIT_CODE)
            return
        sleep(_POLL_SECONDS)


def _is_dead(engine: object) -> bool:
    """The condition for which vLLM's `/health` answers 503."""
    return getattr(engine, "errored", False) is True
