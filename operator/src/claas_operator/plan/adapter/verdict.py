"""Whether a LoraAdapter is ready, and why not: the first reason that applies, as its conditions tell it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from claas_crds.v1alpha1.conditions import AdapterReason
from claas_crds.v1alpha1.lora_adapter import AdapterVersion, Replica, ReplicaState
from claas_operator.plan.adapter.server_fitness import misconfiguration, too_few_slots
from claas_operator.plan.attempt_outcome import failure_of
from claas_operator.plan.world import AdapterWorld, TrainerState

STALLING = frozenset(
    {
        AdapterReason.DEPLOYMENT_NOT_FOUND,
        AdapterReason.STORAGE_NOT_FOUND,
        AdapterReason.STORAGE_NOT_MOUNTED,
        AdapterReason.CONTAINER_NOT_FOUND,
        AdapterReason.SERVER_MISCONFIGURED,
        AdapterReason.SECRET_NOT_FOUND,
        AdapterReason.SECRET_INVALID,
        AdapterReason.INITIALISATION_FAILED,
        AdapterReason.CONTROL_REFUSED,
        AdapterReason.SERVED_NAME_TAKEN,
    }
)
"""Reasons that wait for a person: kstatus' Stalled."""
SECRET_SYNC = timedelta(seconds=180)
"""How long the copy of a Secret in a pod can be older than the Secret: the kubelet's period and its cache."""


@dataclass(frozen=True)
class Verdict:
    """Why the adapter is ready or not."""

    ready: bool
    reason: AdapterReason
    message: str
    passes: bool = False
    """Whether a reason that waits for a person may yet pass by itself."""

    @property
    def stalled(self) -> bool:
        """Whether it waits for a person."""
        return self.reason in STALLING and not self.passes


def judge_adapter(world: AdapterWorld, latest: AdapterVersion | None, replicas: list[Replica]) -> Verdict:
    """The adapter's verdict."""
    missing = _missing(world)
    if missing is not None:
        return missing
    if latest is None:
        return _initialising(world)
    return _serving(world, latest, replicas)


def _missing(world: AdapterWorld) -> Verdict | None:
    spec = world.adapter.spec
    deployment = spec.serving.deployment_ref.name
    claim = spec.storage.claim_name
    if not world.claim_found:
        return Verdict(
            False,
            AdapterReason.STORAGE_NOT_FOUND,
            f"spec.storage.claimName: there is no PersistentVolumeClaim {claim} in this namespace",
        )
    if world.secrets.missing:
        return Verdict(
            False,
            AdapterReason.SECRET_NOT_FOUND,
            f"Secrets or keys that the spec names are missing: {', '.join(world.secrets.missing)}",
        )
    if world.secrets.invalid:
        return Verdict(False, AdapterReason.SECRET_INVALID, "; ".join(world.secrets.invalid))
    if not world.deployment_found:
        return Verdict(
            False,
            AdapterReason.DEPLOYMENT_NOT_FOUND,
            f"spec.serving.deploymentRef.name: there is no Deployment {deployment} in this namespace",
        )
    if world.name_taken_by is not None:
        return Verdict(
            False,
            AdapterReason.SERVED_NAME_TAKEN,
            f"spec.serving.servedName: LoraAdapter {world.name_taken_by} is served as {world.adapter.served_name} by "
            f"Deployment {deployment} already: choose another name",
        )
    container = spec.serving.container
    if container is not None and world.containers is not None and container not in world.containers:
        return Verdict(
            False,
            AdapterReason.CONTAINER_NOT_FOUND,
            f"spec.serving.container: Deployment {deployment} has no container {container}; it has"
            f" {', '.join(world.containers)}",
        )
    return _unmounted(world) or unfit(world)


def _unmounted(world: AdapterWorld) -> Verdict | None:
    """A pod does not see the adapter's folder."""
    pod = next((pod for pod in world.pods if pod.storage_path is None), None)
    if pod is None:
        return None
    spec = world.adapter.spec
    return Verdict(
        False,
        AdapterReason.STORAGE_NOT_MOUNTED,
        f"Pod {pod.name} of Deployment {spec.serving.deployment_ref.name} does not see folder"
        f" {world.adapter.storage_path} of PersistentVolumeClaim {spec.storage.claim_name}: {pod.storage_problem};"
        " mount the claim in the vLLM container, so that it can read the versions",
    )


def unfit(world: AdapterWorld) -> Verdict | None:
    """A server refuses us, or was started so that it can't serve the adapter."""
    if any(pod.server is not None and pod.server.refused for pod in world.pods):
        return _refused(world)
    wrong = misconfiguration(world)
    return None if wrong is None else Verdict(False, AdapterReason.SERVER_MISCONFIGURED, wrong)


def _initialising(world: AdapterWorld) -> Verdict:
    init = world.init
    if init.state in (TrainerState.FAILED, TrainerState.LOST, TrainerState.SUCCEEDED):
        failure = failure_of(init, None)
        return Verdict(
            False,
            AdapterReason.INITIALISATION_FAILED,
            f"The initial version could not be made: {failure.reason}: {failure.message}",
        )
    said = f": {init.message}" if init.message else ""
    if init.hindered:
        return Verdict(False, AdapterReason.TRAINER_NOT_STARTED, f"The initial version waits for its trainer{said}")
    return Verdict(False, AdapterReason.INITIALISING, f"The initial version is being made{said}")


def _refused(world: AdapterWorld) -> Verdict:
    pod = next(pod for pod in world.pods if pod.server is not None and pod.server.refused)
    said = f"Pod {pod.name}: {pod.server.error if pod.server else ''}"
    changed = world.secrets.changed
    if changed is None or world.now - changed > SECRET_SYNC:
        return Verdict(False, AdapterReason.CONTROL_REFUSED, said)
    younger = "; the Secret changed a moment ago, and the pod's copy of it follows within three minutes"
    return Verdict(False, AdapterReason.CONTROL_REFUSED, said + younger, passes=True)


def _serving(world: AdapterWorld, latest: AdapterVersion, replicas: list[Replica]) -> Verdict:
    states = {replica.state for replica in replicas}
    serving = AdapterReason.TRAINING if world.running_job else AdapterReason.SERVING
    listening = [replica for replica in replicas if replica.state is not ReplicaState.NOT_READY]
    if not listening:
        return Verdict(False, AdapterReason.NO_READY_PODS, world.no_pod)
    for state, reason in (
        (ReplicaState.UNREACHABLE, AdapterReason.VLLM_UNREACHABLE),
        (ReplicaState.NOT_APPLIED, AdapterReason.ADAPTER_NOT_APPLIED),
        (ReplicaState.LOAD_FAILED, AdapterReason.LOAD_FAILED),
    ):
        troubled = next((replica for replica in replicas if replica.state is state), None)
        if troubled is not None:
            return Verdict(False, reason, f"Pod {troubled.pod}: {troubled.message}")
    if ReplicaState.ASLEEP in states:
        if world.lease is not None and world.lease.grant is not None and world.lease.grant.may_pause:
            by = world.lease.grant.job_name
            return Verdict(True, AdapterReason.TRAINING, f"DistillJob {by} has paused serving for its step")
        return Verdict(False, AdapterReason.ASLEEP, "vLLM is asleep or paused, and not by a DistillJob: wake it")
    if ReplicaState.LOADING in states:
        return Verdict(False, AdapterReason.LOADING, f"Version {latest.number} is being loaded")
    served = {replica.version for replica in listening}
    said = (
        f"version {latest.number}"
        if served == {latest.number}
        else f"versions {sorted(v for v in served if v is not None)}"
    )
    slots = too_few_slots(world)
    return Verdict(
        True,
        serving,
        f"{len(listening)} of {world.wanted_replicas} pods serve {said} as {world.adapter.served_name}"
        + (f"; {slots}" if slots else ""),
    )
