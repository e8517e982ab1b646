"""Puts versions into service, verifies that they are applied, and takes them out. Each operation is idempotent and
checks every call."""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from posixpath import dirname, normpath

from claas_vllm_client.client import VllmClient, same_path
from claas_vllm_client.errors import AdapterRejected, AliasRejected, VllmError
from claas_vllm_client.loading import VersionLoader, ask, base_name, versions_of
from claas_vllm_client.probing import (
    Finding,
    ProbeRecord,
    ProbeSpec,
    judge,
    judge_successor,
    parse_record,
    worth_keeping,
)
from claas_vllm_client.wire import Alias, ProbeAnswer, ServedModel

_ATTEMPTS = 3


class SwapMethod(StrEnum):
    """How a version gets its served name: by the companion's alias, or by vLLM's own unload and load."""

    COMPANION = "companion"
    VLLM_ROUTES = "vllm_routes"


@dataclass(frozen=True)
class ServiceOutcome:
    """Result of `put_in_service`.

    `changed` is False if the version was in service already. `target` is the name that the version is loaded under;
    `probe` is None if nothing was probed; `load_seconds` covers loading and probing.
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
    """The version that a server serves under a name. `version` is None if the path does not end in a number."""

    version: int | None
    target: str
    path: str
    method: SwapMethod


def version_in_path(path: str) -> int | None:
    """The version number of a version directory (`<storage>/versions/7` -> 7), or None for another path."""
    last = PurePosixPath(normpath(path)).name
    return int(last) if re.fullmatch(r"[0-9]{1,18}", last) else None


async def loaded_version(client: VllmClient, served_name: str) -> LoadedVersion | None:
    """The version that the server serves under `served_name`; None if it does not serve that name."""
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
    """Make the server serve the version at `path` under `served_name`; does nothing if it already does.

    The version is loaded under a name of its own, checked and probed before it gets the served name, so a version
    that can't be loaded or does not answer leaves the current one in service. Without a companion the last part is
    vLLM's unload and load; requests that arrive in between get a 404.

    The probe must not be relied on to detect NaN weights: in vLLM 0.32 on a CPU the NaN stay in a cache block, and
    short answers of other adapters and of the base model fail until the block is overwritten. Never publish such
    weights.

    If the companion has stored an answer of this version or of its parent, the version must not answer as the base
    model does. If it does, it is loaded once more.

    Raises `AdapterRejected`, `ProbeFailed`, `AdapterNotApplied`, `AliasRejected` and the errors of `VllmClient`.
    """
    status = await client.companion_status()
    method = SwapMethod.COMPANION if status else SwapMethod.VLLM_ROUTES
    before = await loaded_version(client, served_name)
    if before and before.method is method and before.version == version and same_path(before.path, path):
        return ServiceOutcome(
            served_name, version, before.target, path, method, changed=False, probe=None, load_seconds=0.0,
            flip_seconds=0.0,
        )  # fmt: skip
    models = await client.models()
    target = _target_name(models, served_name, version, path)
    started = time.monotonic()
    answer: ProbeAnswer | None = None
    record: ProbeRecord | None = None
    if probe is None:
        await client.load_adapter(target, path, timeout_seconds=load_timeout_seconds)
    else:
        known = status.alias(served_name) if status else None
        load = VersionLoader(client, target, path, probe, base_name(models), load_timeout_seconds)
        recorded = parse_record(known.probe, probe) if known else None
        answer, record = await load.applied(_expectation(known, version, path, recorded))
        if record is not None and known is not None and _is_same(known, version, path):
            record = _kept(record, recorded)
    probed = time.monotonic()
    if method is SwapMethod.COMPANION:
        await _flip(
            client, Alias(name=served_name, target=target, path=path, version=version), record, load_timeout_seconds
        )
        if before and before.method is SwapMethod.VLLM_ROUTES:
            # Loaded under the served name itself, before the companion was added.
            await client.unload_adapter(served_name)
    else:
        await _replace(client, served_name, target, path, load_timeout_seconds)
        target = served_name
    return ServiceOutcome(
        served_name, version, target, path, method, changed=True, probe=answer, load_seconds=probed - started,
        flip_seconds=time.monotonic() - probed,
    )  # fmt: skip


class Verification(StrEnum):
    """Result of `verify_in_service`."""

    NOTHING_TO_DO = "nothing_to_do"
    """The companion does not serve the name, or its version has answered a probe since it was loaded and last
    woke."""
    ANSWERED = "answered"
    """The version answers as expected, and its answer is stored."""
    RELOADED = "reloaded"
    """The version was not applied; it is after being loaded again."""


async def verify_in_service(
    client: VllmClient, *, served_name: str, probe: ProbeSpec, load_timeout_seconds: float = 120.0
) -> Verification:
    """Verify that the version in service is applied, if that is in doubt after a wake or a restart.

    A version that is not applied is loaded again under another name, and the served name flips to it; no request
    fails. Raises `AdapterNotApplied` if that does not help, and the errors of `put_in_service`.
    """
    status = await client.companion_status()
    alias = status.alias(served_name) if status else None
    if alias is None or alias.verified or not alias.loaded:
        return Verification.NOTHING_TO_DO
    models = await client.models()
    recorded = parse_record(alias.probe, probe)
    _, now = await ask(client, alias.target, base_name(models), probe)
    if now is None:
        return Verification.NOTHING_TO_DO
    if judge(now, recorded) is not Finding.NOT_APPLIED:
        await _flip(client, alias, _kept(now, recorded), load_timeout_seconds)
        return Verification.ANSWERED
    other = alias.model_copy(update={"target": _other_target(alias)})
    load = VersionLoader(client, other.target, alias.path, probe, base_name(models), load_timeout_seconds)
    await load.applied(lambda answered: judge(answered, recorded))
    await _flip(client, other, recorded, load_timeout_seconds)
    return Verification.RELOADED


def _is_same(known: Alias, version: int, path: str) -> bool:
    return known.version == version and same_path(known.path, path)


def _kept(now: ProbeRecord, recorded: ProbeRecord | None) -> ProbeRecord:
    return recorded if recorded is not None and worth_keeping(recorded, now) else now


def _other_target(alias: Alias) -> str:
    """A second name for the same version, so that it can be loaded twice."""
    plain = f"{alias.name}@{alias.version}"
    return f"{plain}-{_digest(f'{normpath(alias.path)} again')}" if alias.target == plain else plain


async def take_out_of_service(client: VllmClient, *, served_name: str) -> bool:
    """Stop serving a name, and unload its adapter and any versions that were loaded for it but never served. False if
    there was nothing to do."""
    status = await client.companion_status()
    alias = status.alias(served_name) if status else None
    removed = status is not None and await client.delete_alias(served_name)
    # The companion unloads the name's target after its last request.
    for version in versions_of(await client.models(), served_name):
        if alias is None or version != alias.target:
            removed = await client.unload_adapter(version) or removed
    model = await client.model(served_name)
    if model is not None and model.parent is not None:
        removed = await client.unload_adapter(served_name) or removed
    return removed


def _expectation(
    known: Alias | None, version: int, path: str, recorded: ProbeRecord | None
) -> Callable[[ProbeRecord], Finding]:
    """The expected answer of a version, from the record in the served name's alias."""
    if known is not None and _is_same(known, version, path):
        return lambda now: judge(now, recorded)
    folder = dirname(normpath(path))
    if known is not None and known.version + 1 == version and dirname(normpath(known.path)) == folder:
        return lambda now: judge_successor(now, recorded)
    return lambda now: Finding.OPEN


async def _flip(client: VllmClient, alias: Alias, record: ProbeRecord | None, load_timeout_seconds: float) -> None:
    probe = record.model_dump(mode="json") if record else None
    for attempt in range(_ATTEMPTS):
        try:
            await client.set_alias(
                alias.name, target=alias.target, path=alias.path, version=alias.version, probe=probe
            )
            return
        except AliasRejected:
            if attempt + 1 == _ATTEMPTS:
                raise
            # The companion may just have unloaded this target, which was the old version in an earlier swap.
            await client.load_adapter(alias.target, alias.path, timeout_seconds=load_timeout_seconds)


async def _replace(client: VllmClient, served_name: str, target: str, path: str, load_timeout_seconds: float) -> None:
    """Swap without companion: unload the served name and load it again from the new path."""
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
    """`name@7`, or `name@7-<digest of the path>` if an adapter from another path has that name, as after an adapter
    was deleted and created again under the same name while the old one is served.
    """
    name = f"{served_name}@{version}"
    if all(model.id != name or same_path(model.root, path) for model in models):
        return name
    return f"{name}-{_digest(normpath(path))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
