"""The version of a LoraAdapter in each vLLM pod, and the actions to make it the desired one."""

from __future__ import annotations

from collections.abc import Sequence
from posixpath import normpath

from claas_crds.v1alpha1.lora_adapter import Replica, ReplicaState
from claas_crds.v1alpha1.version import AdapterVersion
from claas_operator.plan.actions import Action, PutInService, VerifyServed
from claas_operator.plan.adapter.server_fitness import misconfiguration
from claas_operator.plan.server.load_failures import LoadFailure
from claas_operator.plan.world import AdapterWorld, ServerPod, ServerState


def serving_actions(world: AdapterWorld, desired: AdapterVersion | None, open_step: bool) -> list[Action]:
    """Put the desired version into each pod that can take it. `open_step`: versions in service are left alone."""
    if desired is None or world.name_taken_by is not None or misconfiguration(world) is not None:
        return []
    actions: list[Action] = []
    for pod in world.pods:
        server = pod.server
        if server is None or not server.reachable or server.refused or server.asleep or pod.storage_path is None:
            continue
        failure = failed_load(world, pod, desired)
        rests = failure is not None and world.now < failure.retry_at
        if server.loaded_version == desired.number and server.loaded_path == version_path(pod, desired.number):
            actions.extend(() if server.verified or rests else (VerifyServed(pod, desired.number),))
            continue
        if rests or (open_step and server.loaded_version is not None):
            continue
        actions.append(PutInService(pod, desired.number, version_path(pod, desired.number)))
    return actions


def failed_load(world: AdapterWorld, pod: ServerPod, desired: AdapterVersion | None) -> LoadFailure | None:
    """Why the desired version could not be put into service in the pod; None where that was not tried by this spec,
    or has come about since."""
    failure, server = pod.load_failure, pod.server
    if failure is None or desired is None or server is None:
        return None
    if failure.version != desired.number or failure.generation != world.adapter.metadata.generation:
        return None
    return None if server.loaded_version == desired.number and server.verified else failure


def version_path(pod: ServerPod, number: int) -> str:
    """A version's folder as the pod sees it."""
    return f"{(pod.storage_path or '').rstrip('/')}/versions/{number}"


def replica_of(world: AdapterWorld, pod: ServerPod, desired: AdapterVersion | None, open_step: bool) -> Replica:
    """Status of a pod. `open_step`: any version in service counts as right for now."""
    server = pod.server
    if not pod.ready or server is None:
        return Replica(pod=pod.name, state=ReplicaState.NOT_READY, message=pod.trouble or None)
    version = _own_version(world, pod, server)
    if not server.reachable or server.refused:
        return Replica(pod=pod.name, version=version, state=ReplicaState.UNREACHABLE, message=server.error)
    if server.asleep:
        return Replica(pod=pod.name, version=version, state=ReplicaState.ASLEEP)
    failure = failed_load(world, pod, desired)
    if failure is not None and failure.not_applied:
        return Replica(pod=pod.name, version=version, state=ReplicaState.NOT_APPLIED, message=failure.error)
    if desired is not None and version == desired.number:
        return Replica(pod=pod.name, version=version, state=ReplicaState.SERVING)
    if failure is not None:
        return Replica(pod=pod.name, version=version, state=ReplicaState.LOAD_FAILED, message=failure.error)
    if version is not None and open_step:
        return Replica(pod=pod.name, version=version, state=ReplicaState.SERVING)
    return Replica(pod=pod.name, version=version, state=ReplicaState.LOADING)


def _own_version(world: AdapterWorld, pod: ServerPod, server: ServerState) -> int | None:
    """The version of this adapter behind its served name; None if the name serves anything else."""
    if world.name_taken_by is not None:
        return None
    number, path = server.loaded_version, server.loaded_path
    if number is None or path is None or pod.storage_path is None:
        return number
    return number if normpath(path) == normpath(version_path(pod, number)) else None


def served_version(world: AdapterWorld, replicas: Sequence[Replica]) -> int | None:
    """The version that every ready pod serves; the previous value while they differ or none is ready."""
    versions = {replica.version for replica in replicas if replica.state is not ReplicaState.NOT_READY}
    if len(versions) == 1 and None not in versions:
        return versions.pop()
    return world.adapter.status.served_version if world.name_taken_by is None else None


def ready_replicas(world: AdapterWorld, replicas: Sequence[Replica]) -> str:
    """Pods that serve the desired version, out of all pods, for people."""
    serving = sum(replica.state is ReplicaState.SERVING for replica in replicas)
    return f"{serving}/{world.wanted_replicas}"
