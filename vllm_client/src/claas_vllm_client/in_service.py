"""Versions in service: put there, seen to be applied, taken out. Each is several calls, each checked, idempotent."""

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
from claas_vllm_client.loading import (
    Load,
    ask,
    base_name,
    versions_of,
)
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
    """How a served name came to its version: the companion's alias, or vLLM's own unload and load."""

    COMPANION = "companion"
    VLLM_ROUTES = "vllm_routes"


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

    Where the companion remembers how this version, or the one it was trained from, answered, the version must not
    answer as the base does. One that does is loaded once more.

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
        load = Load(client, target, path, probe, base_name(models), load_timeout_seconds)
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
            await client.unload_adapter(served_name)  # Loaded under the name itself before the companion came.
    else:
        await _replace(client, served_name, target, path, load_timeout_seconds)
        target = served_name
    return ServiceOutcome(
        served_name, version, target, path, method, changed=True, probe=answer, load_seconds=probed - started,
        flip_seconds=time.monotonic() - probed,
    )  # fmt: skip


class Verification(StrEnum):
    """What `verify_in_service` found and did."""

    NOTHING_TO_DO = "nothing_to_do"
    """The name is not served by the companion, or its version was seen to answer since its load and the last wake."""
    ANSWERED = "answered"
    """The version answers; how is remembered."""
    RELOADED = "reloaded"
    """The version was not applied, and is since it was loaded again."""


async def verify_in_service(
    client: VllmClient, *, served_name: str, probe: ProbeSpec, load_timeout_seconds: float = 120.0
) -> Verification:
    """See that the version in service is applied, where that is in doubt: after a wake, and after a restart.

    One that is not is loaded again under another name of its own, and the served name flips: no request fails.
    Raises `AdapterNotApplied` when that does not help, and as `put_in_service`.
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
    load = Load(client, other.target, alias.path, probe, base_name(models), load_timeout_seconds)
    await load.applied(lambda answered: judge(answered, recorded))
    await _flip(client, other, recorded, load_timeout_seconds)
    return Verification.RELOADED


def _is_same(known: Alias, version: int, path: str) -> bool:
    return known.version == version and same_path(known.path, path)


def _kept(now: ProbeRecord, recorded: ProbeRecord | None) -> ProbeRecord:
    return recorded if recorded is not None and worth_keeping(recorded, now) else now


def _other_target(alias: Alias) -> str:
    """Another name for the same version, so that both can be loaded."""
    plain = f"{alias.name}@{alias.version}"
    return f"{plain}-{_digest(f'{normpath(alias.path)} again')}" if alias.target == plain else plain


async def take_out_of_service(client: VllmClient, *, served_name: str) -> bool:
    """Stop serving a name, and unload its adapter and what was loaded for it but never served. False when there was
    none of that."""
    status = await client.companion_status()
    alias = status.alias(served_name) if status else None
    removed = status is not None and await client.delete_alias(served_name)
    # The companion unloads what the name pointed at, after its last request.
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
    """What is known of how a version must answer, by what the served name's alias remembers."""
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
            # The companion may just have unloaded this target as the old version of an earlier swap.
            await client.load_adapter(alias.target, alias.path, timeout_seconds=load_timeout_seconds)


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
    return f"{name}-{_digest(normpath(path))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
