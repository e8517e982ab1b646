"""vLLM as a child process of the container's own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from claas_bounded.waits import Deadline, in_thread, wait_until


class VllmProcess:
    """The process, from its start on. It writes where its parent does."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        # A session of its own, so that all its processes can be ended.
        self._process = subprocess.Popen(command, env=dict(environment), start_new_session=True)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    async def ended(self) -> int:
        """Its exit code, when it has ended."""
        return await in_thread(self._process.wait)

    async def stop(self, seconds: float) -> None:
        """Ask it to end (SIGTERM), which lets it finish what it answers; kill what is left after that time."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await wait_until(Deadline.after(seconds), self.ended())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
