"""The vLLM pods of an adapter: clients for them, and the failure reasons for their errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from claas_contract.input import ServingTarget, VllmPod
from claas_contract.outcome import FailureReason
from claas_trainer.errors import ServingError
from claas_trainer.paths import Paths
from claas_vllm_client import DrainTimedOut, Refused, StillPaused, Tls, TlsFailed, Unreachable, VllmClient, VllmError


@dataclass(frozen=True)
class ServingPod:
    """A vLLM pod and a client for its address."""

    pod: VllmPod
    client: VllmClient


@asynccontextmanager
async def connect(serving: ServingTarget | None, paths: Paths) -> AsyncIterator[tuple[ServingPod, ...]]:
    """Context manager: clients for all pods. Raises InputError if a token can't be read."""
    if serving is None:
        yield ()
        return
    tls = trust_in(serving, paths)
    token = paths.mounted_control_token(serving.has_control_token)
    key = paths.mounted_api_key(serving.has_api_key)
    async with AsyncExitStack() as stack:
        pods = []
        for pod in serving.pods:
            client = VllmClient(pod.url, control_token=token, api_key=key, tls=tls)
            pods.append(ServingPod(pod, await stack.enter_async_context(client)))
        yield tuple(pods)


def trust_in(serving: ServingTarget, paths: Paths) -> Tls:
    """How the servers' certificates are verified. Raises InputError if their CA can't be read."""
    return Tls(paths.read_serving_ca(serving.tls.has_ca), serving.tls.server_name)


def serving_error(pod: VllmPod, error: VllmError, otherwise: FailureReason) -> ServingError:
    """Adds the pod's name to an error; `otherwise` is the reason for errors that do not imply one."""
    reason = otherwise
    if isinstance(error, DrainTimedOut):
        reason = FailureReason.DRAIN_TIMED_OUT
    elif isinstance(error, StillPaused):
        reason = FailureReason.RESUME_FAILED
    elif isinstance(error, Refused):
        reason = FailureReason.CONTROL_REFUSED
    elif isinstance(error, (Unreachable, TlsFailed)):
        reason = FailureReason.VLLM_UNREACHABLE
    return ServingError(reason, f"pod {pod.name}: {error}")


def first_error(results: Sequence[BaseException | None]) -> BaseException | None:
    """The first error among the outcomes of several pods; other exceptions come before VllmErrors."""
    errors = [result for result in results if result is not None]
    return next((error for error in errors if not isinstance(error, VllmError)), errors[0] if errors else None)
