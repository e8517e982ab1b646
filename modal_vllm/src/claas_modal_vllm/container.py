"""What a container does from its start to its end: vLLM as a process, and a follower that keeps the right versions in
it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from claas_modal_client.connection import ModalConnection
from claas_modal_client.deployment import model_missing
from claas_modal_client.pointers import Pointers
from claas_modal_client.volume import ModalVolume
from claas_modal_vllm.command import vllm_command, vllm_environment
from claas_modal_vllm.deployment import CONTROL_TOKEN, PORT, WEIGHTS_MOUNT, ServerDeployment
from claas_modal_vllm.errors import ContainerStartError
from claas_modal_vllm.follower import LOOK_SECONDS, Follower
from claas_modal_vllm.local_files import LocalFiles
from claas_modal_vllm.process import VllmProcess
from claas_modal_vllm.vllm import LocalVllm
from claas_vllm_client import PauseMode, VllmClient, VllmError, ensure_awake, token_fault

logger = logging.getLogger(__name__)

LISTEN_HOST = "CLAAS_MODAL_LISTEN_HOST"
"""The address that vLLM listens on: all, unless containers share one machine, as in tests."""
_FIRST_FOLLOW_SECONDS = 120.0
"""How long a container that could already answer waits for versions that may still come."""
_POLL_SECONDS = 0.5
_SLEEP_SECONDS = 300.0
_LOST = 70
"""Exit code of a container whose vLLM has ended."""


class VllmContainer:
    """One container. `launch` and perhaps `doze`, `wake`, then `follow`, and `stop` at the end."""

    def __init__(
        self,
        deployment: ServerDeployment,
        folder: Path,
        connection: ModalConnection,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._deployment = deployment
        self._folder = folder
        self._connection = connection
        self._end = end
        self._deadline = time.monotonic() + deployment.start_seconds
        self._process: VllmProcess | None = None
        self._client: VllmClient | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def launch(self) -> None:
        """Start vLLM and wait until it answers. Raises ContainerStartError."""
        self._check_model()
        host = os.environ.get(LISTEN_HOST) or "0.0.0.0"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_token()
        self._process = VllmProcess(
            vllm_command(self._deployment, host, PORT), vllm_environment(os.environ, self._token_file)
        )
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{PORT}"
        self._client = VllmClient(url, control_token=self._token, timeout_seconds=30.0)
        while not await self._answers(self._client):
            code = self._process.exit_code
            if code is not None:
                raise ContainerStartError(f"vLLM ended with exit code {code} before it answered; its log says why")
            if time.monotonic() > self._deadline:
                raise ContainerStartError(
                    f"vLLM did not answer within {self._deployment.start_seconds} s; look at its log, or set"
                    " CLAAS_MODAL_START_SECONDS"
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def doze(self) -> None:
        """Warm vLLM up, and let it sleep until `wake`. Raises VllmError."""
        client = self._running()
        await client.probe(self._deployment.model_name, "Hello", max_tokens=4, timeout_seconds=_SLEEP_SECONDS)
        await client.sleep(mode=PauseMode.KEEP, level=1, timeout_seconds=_SLEEP_SECONDS)

    async def wake(self) -> None:
        """Wake vLLM, perhaps in another container than the one that let it sleep. Raises VllmError."""
        # The Secret, and the time, are those of this container.
        self._deadline = time.monotonic() + self._deployment.start_seconds
        self._write_token()
        await ensure_awake(self._running(), timeout_seconds=_SLEEP_SECONDS)

    async def follow(self) -> None:
        """Put the pointers' versions into service, then go on in the background. Raises ContainerStartError if the
        pointers can't be read."""
        client = self._running()
        common = self._deployment.common
        follower = Follower(
            Pointers(ModalVolume(self._connection, common.volume), common.app),
            LocalFiles(self._folder / "adapters", self._connection),
            LocalVllm(client),
            container=os.environ.get("MODAL_TASK_ID") or "unknown",
            max_containers=self._deployment.max_containers,
        )
        self._watch()
        patience = min(time.monotonic() + _FIRST_FOLLOW_SECONDS, self._deadline)
        while True:
            settled = await follower.look()
            if settled or time.monotonic() >= patience:
                break
            await asyncio.sleep(LOOK_SECONDS)
        if not follower.has_looked:
            raise ContainerStartError(f"the pointers can't be read: {follower.why()}")
        if not settled:
            logger.warning("it answers without all versions: %s", follower.why())
        self._tasks.append(asyncio.create_task(follower.run()))

    async def stop(self) -> None:
        """End vLLM; requests that it answers have the grace period."""
        for task in self._tasks:
            task.cancel()
        if self._client is not None:
            await self._client.aclose()
        if self._process is not None:
            await self._process.stop(self._deployment.grace_seconds + 5.0)

    def _watch(self) -> None:
        process = self._process
        assert process is not None

        async def watch() -> None:
            code = await process.ended()
            # A container without vLLM must not be kept, and Modal starts another one in its place.
            logger.error("vLLM ended with exit code %d, and the container with it", code)
            self._end(_LOST)

        self._tasks.append(asyncio.create_task(watch()))

    def _running(self) -> VllmClient:
        if self._client is None:
            raise ContainerStartError("vLLM was not started")
        return self._client

    async def _answers(self, client: VllmClient) -> bool:
        try:
            return await client.health()
        except VllmError:
            return False

    @property
    def _token_file(self) -> Path:
        return self._folder / "control-token"

    def _token(self) -> str:
        return os.environ.get(CONTROL_TOKEN, "").strip()

    def _check_model(self) -> None:
        """Raises ContainerStartError if the base model is not there: vLLM would look for it on the hub."""
        common = self._deployment.common
        if not Path(WEIGHTS_MOUNT, common.model, "config.json").is_file():
            lacking = f"it has no {common.model}/config.json"
            raise ContainerStartError(model_missing(common.weights_volume, common.model, lacking))

    def _write_token(self) -> None:
        """Give the companion its token, as a file that nobody else reads. Raises ContainerStartError."""
        token = self._token().encode()
        if (fault := token_fault(token)) is not None:
            raise ContainerStartError(
                f"{CONTROL_TOKEN} of the Modal Secret {self._deployment.control_secret} {fault}"
            )
        part = self._token_file.with_suffix(".part")
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(token)
        part.replace(self._token_file)
