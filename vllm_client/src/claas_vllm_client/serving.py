"""Putting a version into service, and pausing and resuming a server: several calls, each checked, idempotent."""

import asyncio
import hashlib
import math
import re
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from posixpath import normpath

from claas_vllm_client.client import VllmClient, same_path
from claas_vllm_client.errors import (
    AdapterRejected,
    AliasRejected,
    AnswerTimedOut,
    DrainTimedOut,
    NotConnected,
    ProbedNothing,
    ProbeFailed,
    Refused,
    RequestFailed,
    RouteMissing,
    ServerGone,
    StillPaused,
    Unreachable,
    VllmError,
)
from claas_vllm_client.wire import LoadOutcome, PauseMode, ProbeAnswer, ServedModel

_ATTEMPTS = 3
_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 2.0
_GONE_SECONDS = 10.0
"""Without a connection. A process that is busy or held up still takes connections."""
_WITHOUT_EFFECT = (NotConnected, Refused, RouteMissing)


class SwapMethod(StrEnum):
    """How a served name came to its version: the companion's alias, or vLLM's own unload and load."""

    COMPANION = "companion"
    VLLM_ROUTES = "vllm_routes"


@dataclass(frozen=True)
class ProbeSpec:
    """The fixed prompt a version must answer before it goes into service."""

    prompt: str
    max_tokens: int = 8
    timeout_seconds: float = 60.0


@dataclass(frozen=True)
class ServiceOutcome:
    """What `put_in_service` did. `changed` is False when the version was already in service.

    `target` is the name the version is loaded under; `probe` is None when nothing was probed; `load_seconds` is
    loading and probing together.
    """

    served_name: str
    version: int
    target: str
    path: str
    method: SwapMethod
    changed: bool
    probe: ProbeAnswer | None
    load_seconds: float
    flip_seconds: float


@dataclass(frozen=True)
class LoadedVersion:
    """The version a server answers a name with. `version` is None when the path does not end in a number."""

    version: int | None
    target: str
    path: str
    method: SwapMethod


def version_in_path(path: str) -> int | None:
    """The version number of a version directory (`<storage>/versions/7` -> 7), or None for another path."""
    last = PurePosixPath(normpath(path)).name
    return int(last) if re.fullmatch(r"[0-9]{1,18}", last) else None


async def loaded_version(client: VllmClient, served_name: str) -> LoadedVersion | None:
    """Which version the server answers `served_name` with, or None when it does not serve it."""
    status = await client.companion_status()
    alias = status.alias(served_name) if status else None
    if alias is not None:
        if not alias.loaded:
            return None
        return LoadedVersion(alias.version, alias.target, alias.path, SwapMethod.COMPANION)
    model = await client.model(served_name)
    if model is None or model.parent is None or model.root is None:
        return None
    return LoadedVersion(version_in_path(model.root), model.id, model.root, SwapMethod.VLLM_ROUTES)


async def put_in_service(
    client: VllmClient,
    *,
    served_name: str,
    version: int,
    path: str,
    probe: ProbeSpec | None,
    load_timeout_seconds: float = 120.0,
) -> ServiceOutcome:
    """Make the server answer `served_name` with the version at `path`; nothing happens if it already does.

    The version is loaded under a name of its own, checked, probed, and only then put under the served name,
    so that a version that can't be loaded or does not answer leaves the one in service untouched. Without
    a companion the last step is vLLM's unload and load: requests that arrive between them get a 404.

    The probe is no place to find out about NaN weights: in vLLM 0.32 on a CPU the NaN stay in a cache block, and
    short answers of other adapters and of the base fail until it is overwritten. Never publish such weights.

    Raises `AdapterRejected`, `ProbeFailed`, `AliasRejected` and the errors of `VllmClient`.
    """
    status = await client.companion_status()
    method = SwapMethod.COMPANION if status else SwapMethod.VLLM_ROUTES
    before = await loaded_version(client, served_name)
    if before and before.method is method and before.version == version and same_path(before.path, path):
        return ServiceOutcome(
            served_name, version, before.target, path, method, changed=False, probe=None, load_seconds=0.0,
            flip_seconds=0.0,
        )  # fmt: skip
    target = _target_name(await client.models(), served_name, version, path)
    started = time.monotonic()
    answer = await _load_and_probe(client, target, path, probe, load_timeout_seconds)
    probed = time.monotonic()
    if method is SwapMethod.COMPANION:
        await _flip(client, served_name, target, path, version, load_timeout_seconds)
        if before and before.method is SwapMethod.VLLM_ROUTES:
            await client.unload_adapter(served_name)  # Loaded under the name itself before the companion came.
    else:
        await _replace(client, served_name, target, path, load_timeout_seconds)
        target = served_name
    return ServiceOutcome(
        served_name, version, target, path, method, changed=True, probe=answer, load_seconds=probed - started,
        flip_seconds=time.monotonic() - probed,
    )  # fmt: skip


async def take_out_of_service(client: VllmClient, *, served_name: str) -> bool:
    """Stop serving a name and unload its adapter. False when it was not served."""
    removed = await client.companion_status() is not None and await client.delete_alias(served_name)
    model = await client.model(served_name)
    if model is not None and model.parent is not None:
        removed = await client.unload_adapter(served_name) or removed
    return removed


async def pause_serving(
    client: VllmClient,
    *,
    mode: PauseMode = PauseMode.KEEP,
    level: int = 1,
    drain_timeout_seconds: float = 60.0,
    sleep_timeout_seconds: float = 60.0,
    resume_timeout_seconds: float = 30.0,
) -> float:
    """Put the server to sleep, and return how many seconds that took.

    With WAIT, running requests are drained by `/pause` first and the engine sleeps when it is empty: a
    `/sleep?mode=wait` that is given up would stay queued in the engine and put it to sleep after the resume.
    Requests are ended only with ABORT, which is never chosen here.

    Raises `DrainTimedOut` when running requests did not end in time; serving is then resumed. When a call fails
    that may have paused the server, it is woken before the error is raised; `StillPaused` when that fails
    within `resume_timeout_seconds`. Callers that are cancelled must resume.
    """
    started = time.monotonic()
    if mode is PauseMode.WAIT:
        await _drain(client, drain_timeout_seconds, resume_timeout_seconds)
    # After a drain nothing runs, and "keep" freezes what arrived since.
    sleep_mode = PauseMode.KEEP if mode is PauseMode.WAIT else mode
    try:
        await client.sleep(mode=sleep_mode, level=level, timeout_seconds=sleep_timeout_seconds)
    except VllmError as error:
        if mode is PauseMode.WAIT or not isinstance(error, _WITHOUT_EFFECT):
            await ensure_awake(client, timeout_seconds=resume_timeout_seconds)
        raise
    return time.monotonic() - started


async def resume_serving(client: VllmClient, *, timeout_seconds: float = 60.0) -> float:
    """Wake the server at once, check that it is awake, and return how many seconds that took.

    A refused token is tried again where the client renews it. Raises `StillPaused` when the server is not awake in
    time, `ServerGone` when it has ended, and `Refused`.
    """
    started = time.monotonic()
    await _wake_until_awake(client, started + timeout_seconds)
    return time.monotonic() - started


async def ensure_awake(client: VllmClient, *, timeout_seconds: float = 60.0) -> bool:
    """Wake the server if it is asleep or paused. True when it had to be woken.

    A server without sleep routes can't have been put to sleep: False. Raises as `resume_serving`.
    """
    deadline = time.monotonic() + timeout_seconds
    try:
        if not await client.is_sleeping():
            return False
    except RouteMissing:
        return False
    except Refused:
        if not client.renews_token:
            raise
    except (Unreachable, RequestFailed):
        pass  # The loop below asks again, until the deadline.
    await _wake_until_awake(client, deadline)
    return True


async def _wake_until_awake(client: VllmClient, deadline: float) -> None:
    """Call `/wake_up` until `/is_sleeping` is false: a wake fails while another process holds the memory."""
    delay = _FIRST_RETRY_SECONDS
    last: VllmError | None = None
    connected_at = time.monotonic()
    while True:
        remaining = deadline - time.monotonic()
        try:
            await client.wake_up(timeout_seconds=max(1.0, remaining))
            if not await client.is_sleeping():
                return
            last = None
        except RouteMissing:
            raise
        except Refused as error:
            if not client.renews_token:
                raise
            last = error
        except (Unreachable, RequestFailed) as error:
            last = error
        if not isinstance(last, NotConnected):
            connected_at = time.monotonic()
        elif time.monotonic() - connected_at > _GONE_SECONDS:
            raise ServerGone(client.base_url, f"has ended: no connection for {_GONE_SECONDS:g} s") from last
        if time.monotonic() + delay >= deadline:
            raise StillPaused(
                client.base_url,
                f"still asleep or paused ({last.message if last else 'it says so'}); check that no other process"
                " holds the GPU's memory, then POST /wake_up, or restart the pod",
            ) from last
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LONGEST_RETRY_SECONDS)


async def _drain(client: VllmClient, timeout_seconds: float, resume_timeout_seconds: float) -> None:
    try:
        await client.pause(mode=PauseMode.WAIT, timeout_seconds=timeout_seconds)
    except _WITHOUT_EFFECT:
        raise
    except AnswerTimedOut as error:
        await _resume(client, resume_timeout_seconds)
        raise DrainTimedOut(
            client.base_url,
            f"running requests did not end within {timeout_seconds:g} s; serving was resumed and none was ended."
            " Give a longer drain timeout, or pause with mode keep",
        ) from error
    except VllmError:
        await _resume(client, resume_timeout_seconds)
        raise


async def _resume(client: VllmClient, timeout_seconds: float) -> None:
    """End a pause without sleep, and check that it ended; by a full wake-up if /resume does not do it."""
    try:
        await client.resume()
        paused = await client.is_paused()
    except (Unreachable, RequestFailed):
        paused = True
    if paused:
        await ensure_awake(client, timeout_seconds=timeout_seconds)


async def _load_and_probe(
    client: VllmClient, target: str, path: str, probe: ProbeSpec | None, load_timeout_seconds: float
) -> ProbeAnswer | None:
    for attempt in range(_ATTEMPTS):
        outcome = await client.load_adapter(target, path, timeout_seconds=load_timeout_seconds)
        try:
            return await _probe(client, target, probe) if probe else None
        except ProbedNothing:
            # The companion may just have unloaded this target as the old version of an earlier swap.
            if attempt + 1 == _ATTEMPTS:
                raise
        except ProbeFailed:
            if outcome is LoadOutcome.LOADED:
                await client.unload_adapter(target)
            raise
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _probe(client: VllmClient, model: str, spec: ProbeSpec) -> ProbeAnswer:
    answer = await client.probe(model, spec.prompt, max_tokens=spec.max_tokens, timeout_seconds=spec.timeout_seconds)
    if answer.answered_by != model:
        raise ProbeFailed(client.base_url, f"{model} was asked and {answer.answered_by} answered")
    if not all(math.isfinite(value) for value in answer.logprobs):
        raise ProbeFailed(
            client.base_url, f"{model} answers with log-probabilities that are not finite; its weights are broken"
        )
    return answer


async def _flip(
    client: VllmClient, served_name: str, target: str, path: str, version: int, load_timeout_seconds: float
) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            await client.set_alias(served_name, target=target, path=path, version=version)
            return
        except AliasRejected:
            if attempt + 1 == _ATTEMPTS:
                raise
            # The companion may just have unloaded this target as the old version of an earlier swap.
            await client.load_adapter(target, path, timeout_seconds=load_timeout_seconds)


async def _replace(client: VllmClient, served_name: str, target: str, path: str, load_timeout_seconds: float) -> None:
    """vLLM's own way: unload the served name and load it again from the new path."""
    old = await client.model(served_name)
    if old is not None and old.parent is None:
        raise AdapterRejected(
            client.base_url, served_name, path, "the name is that of the base model; serve under another name"
        )
    if old is not None:
        await client.unload_adapter(served_name)
    try:
        await client.load_adapter(served_name, path, timeout_seconds=load_timeout_seconds)
    except VllmError:
        if old is not None and old.root is not None:
            await client.load_adapter(served_name, old.root, timeout_seconds=load_timeout_seconds)
        raise
    await client.unload_adapter(target)


def _target_name(models: tuple[ServedModel, ...], served_name: str, version: int, path: str) -> str:
    """`name@7`, or `name@7-<digest of the path>` when that is taken by an adapter from another path.

    That happens when an adapter was deleted and made anew under the same name while the old one is served.
    """
    name = f"{served_name}@{version}"
    if all(model.id != name or same_path(model.root, path) for model in models):
        return name
    return f"{name}-{hashlib.sha256(normpath(path).encode()).hexdigest()[:8]}"
