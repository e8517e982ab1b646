"""Readiness checks of a LoraAdapter: the first one in `READY_CHECKS` with an answer decides.

First the problems that need a person, in the order of dependence: storage, Secrets, Deployment, server. Then the
initial version, then the pods. Of servers on Modal the only replica is the app.
"""

from __future__ import annotations

from collections.abc import Callable

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.conditions import AdapterReason
from claas_crds.v1alpha1.lora_adapter import Replica, ReplicaState
from claas_operator.plan.adapter.engine import refusals_of
from claas_operator.plan.adapter.readiness import AdapterView, Readiness
from claas_operator.plan.adapter.server_fitness import misconfigured, refused, too_few_slots
from claas_operator.plan.attempt_outcome import failure_of
from claas_operator.plan.checks import first_answer
from claas_operator.plan.lineage.lineage import Lineage
from claas_operator.plan.modal.state import ASKS_SERVER, ModalTrouble
from claas_operator.plan.world import AdapterWorld, TrainerState


def readiness_of(world: AdapterWorld, lineage: Lineage, replicas: tuple[Replica, ...]) -> Readiness:
    """Whether the adapter is ready, and why."""
    said = first_answer(READY_CHECKS, AdapterView(world, lineage, replicas))
    assert said is not None
    return said


def engine_refused(view: AdapterView) -> Readiness | None:
    """First of all, because nothing else can cure it."""
    refusals = refusals_of(view.world)
    return Readiness(False, AdapterReason.ENGINE_REFUSED, "; ".join(refusals)) if refusals else None


def claim_missing(view: AdapterView) -> Readiness | None:
    """Before all else that exists or not, because everything needs the volume."""
    if view.world.claim_found:
        return None
    claim = view.world.adapter.spec.storage.claim_name
    said = f"spec.storage.claimName: there is no PersistentVolumeClaim {claim} in this namespace"
    return Readiness(False, AdapterReason.STORAGE_NOT_FOUND, said)


def secret_missing(view: AdapterView) -> Readiness | None:
    """Before the servers, which can't be asked without their tokens."""
    missing = view.world.secrets.missing
    if not missing:
        return None
    said = f"Secrets or keys that the spec names are missing: {', '.join(missing)}"
    return Readiness(False, AdapterReason.SECRET_NOT_FOUND, said)


def secret_invalid(view: AdapterView) -> Readiness | None:
    """After missing Secrets, because only existing ones can be checked."""
    invalid = view.world.secrets.invalid
    return Readiness(False, AdapterReason.SECRET_INVALID, "; ".join(invalid)) if invalid else None


def deployment_missing(view: AdapterView) -> Readiness | None:
    """Before all checks of the Deployment and its pods. That of an inference proxy is made once there is a version to
    serve."""
    if view.world.deployment_found or view.world.proxy is not None or view.world.adapter.outside_cluster:
        return None
    deployment = view.world.adapter.deployment_name
    said = f"spec.serving.deploymentRef.name: there is no Deployment {deployment} in this namespace"
    return Readiness(False, AdapterReason.DEPLOYMENT_NOT_FOUND, said)


def proxy_name_taken(view: AdapterView) -> Readiness | None:
    """Beside it: the Deployment is somebody else's. That of an earlier adapter with the name goes by itself."""
    proxy = view.world.proxy
    if proxy is None or proxy.taken_by is None:
        return None
    said = f"spec.serving.tinkerProxy: there is a {proxy.taken_by} that is not this adapter's: delete it"
    return Readiness(False, AdapterReason.SERVER_MISCONFIGURED, said)


def served_name_taken(view: AdapterView) -> Readiness | None:
    """Before the pods: what they serve under the name is another adapter's."""
    world = view.world
    if world.name_taken_by is None:
        return None
    app = world.adapter.spec.serving.modal_app
    by = f"Deployment {world.adapter.deployment_name}" if app is None else f"the app {app.app} on Modal"
    return Readiness(
        False,
        AdapterReason.SERVED_NAME_TAKEN,
        f"spec.serving.servedName: LoraAdapter {world.name_taken_by} is served as {world.adapter.served_name} by"
        f" {by} already: choose another name",
    )


def container_missing(view: AdapterView) -> Readiness | None:
    """Before mounts and settings, which are read from that container."""
    adapter, containers = view.world.adapter, view.world.containers
    serving = adapter.spec.serving
    if serving.container is None or containers is None or serving.container in containers:
        return None
    return Readiness(
        False,
        AdapterReason.CONTAINER_NOT_FOUND,
        f"spec.serving.container: Deployment {adapter.deployment_name} has no container {serving.container};"
        f" it has {', '.join(containers)}",
    )


def storage_not_mounted(view: AdapterView) -> Readiness | None:
    """Before the initial version: no pod that does not see the adapter's folder could load it."""
    world = view.world
    pod = next((pod for pod in world.pods if pod.storage_path is None), None)
    if pod is None:
        return None
    spec = world.adapter.spec
    return Readiness(
        False,
        AdapterReason.STORAGE_NOT_MOUNTED,
        f"Pod {pod.name} of Deployment {world.adapter.deployment_name} does not see folder"
        f" {world.adapter.storage_path} of PersistentVolumeClaim {spec.storage.claim_name}: {pod.storage_problem};"
        " mount the claim in the vLLM container, so that it can read the versions",
    )


def control_refused(view: AdapterView) -> Readiness | None:
    """Before the server's settings, which a server that refuses the token does not report."""
    return refused(view.world)


def server_misconfigured(view: AdapterView) -> Readiness | None:
    """Before the initial version, which no pod could load."""
    return misconfigured(view.world)


def modal_refuses(view: AdapterView) -> Readiness | None:
    """Before the initial version, for the same reason. Only what needs a person; the rest passes by itself."""
    modal = view.world.modal
    setback = modal.setback if modal is not None else None
    reason = MODAL_REFUSALS.get(setback.trouble) if setback is not None else None
    return Readiness(False, reason, setback.message) if setback is not None and reason is not None else None


def initial_version_failed(view: AdapterView) -> Readiness | None:
    """From here on without a head there is nothing to serve."""
    init = view.world.init
    ended = init.state in (TrainerState.FAILED, TrainerState.LOST, TrainerState.SUCCEEDED)
    if view.lineage.head is not None or not ended:
        return None
    failure = failure_of(init, None)
    said = f"The initial version could not be made: {failure.reason}: {failure.message}"
    passes = failure.reason in (FailureReason.RATE_LIMITED, FailureReason.SERVICE_UNREACHABLE)
    return Readiness(False, AdapterReason.INITIALISATION_FAILED, said, passes=passes)


def initial_version_not_started(view: AdapterView) -> Readiness | None:
    """The trainer has not ended; it may be kept from starting."""
    if view.lineage.head is not None or not view.world.init.hindered:
        return None
    said = f"The initial version waits for its trainer{_quoted(view)}"
    return Readiness(False, AdapterReason.TRAINER_NOT_STARTED, said)


def initial_version_awaited(view: AdapterView) -> Readiness | None:
    """Nothing keeps the trainer from starting."""
    if view.lineage.head is not None:
        return None
    return Readiness(False, AdapterReason.INITIALISING, f"The initial version is being made{_quoted(view)}")


def no_pod_ready(view: AdapterView) -> Readiness | None:
    """Before the checks of single pods, of which there are none."""
    return None if view.listening else Readiness(False, AdapterReason.NO_READY_PODS, view.world.no_pod)


def pod_unreachable(view: AdapterView) -> Readiness | None:
    """Before its versions, which are unknown if the pod does not answer, or nobody can be asked about it."""
    modal = view.world.modal
    api_fails = modal is not None and modal.setback is not None and modal.setback.trouble not in ASKS_SERVER
    reason = AdapterReason.SERVICE_UNREACHABLE if api_fails else AdapterReason.VLLM_UNREACHABLE
    return _troubled(view, ReplicaState.UNREACHABLE, reason)


def version_not_applied(view: AdapterView) -> Readiness | None:
    """Before failed loads: the pod reports the version but answers as the base model does, which clients can't
    notice."""
    return _troubled(view, ReplicaState.NOT_APPLIED, AdapterReason.ADAPTER_NOT_APPLIED)


def load_failed(view: AdapterView) -> Readiness | None:
    """Before pods that sleep or load, because this more likely needs a person."""
    return _troubled(view, ReplicaState.LOAD_FAILED, AdapterReason.LOAD_FAILED)


def paused_for_a_step(view: AdapterView) -> Readiness | None:
    """Before other sleep: a pause for a step ends by itself, so the adapter counts as ready."""
    lease = view.world.lease
    grant = lease.grant if lease is not None else None
    if view.first(ReplicaState.ASLEEP) is None or grant is None or not grant.may_pause:
        return None
    return Readiness(True, AdapterReason.TRAINING, f"DistillJob {grant.names} has paused serving for its step")


def asleep(view: AdapterView) -> Readiness | None:
    """Before loads: nothing is loaded into a pod that sleeps."""
    if view.first(ReplicaState.ASLEEP) is None:
        return None
    return Readiness(False, AdapterReason.ASLEEP, "vLLM is asleep or paused, and not by a DistillJob: wake it")


def loading(view: AdapterView) -> Readiness | None:
    """The last check that can fail."""
    desired = view.lineage.desired
    if view.first(ReplicaState.LOADING) is None or desired is None:
        return None
    first = ", for the first time" if view.lineage.candidate is not None else ""
    said = f"Version {desired.number} is being loaded{first}"
    if (server := view.world.modal_server) is not None:
        told = view.replicas[0].message
        said = f"Version {desired.number} is awaited of the app {server.place.app} on Modal{first}: {told}"
    return Readiness(False, AdapterReason.LOADING, said)


def serving(view: AdapterView) -> Readiness | None:
    """All checks have passed."""
    world, desired = view.world, view.lineage.desired
    served = {replica.version for replica in view.listening}
    said = (
        f"version {desired.number}"
        if desired is not None and served == {desired.number}
        else f"versions {sorted(version for version in served if version is not None)}"
    )
    by = f"{len(view.listening)} of {world.wanted_replicas} pods serve {said} as {world.adapter.served_name}"
    more = too_few_slots(world)
    if world.modal_server is not None:
        by = f"The app {world.modal_server.place.app} on Modal serves {said} as {world.adapter.served_name}"
        more = view.replicas[0].message
    reason = AdapterReason.TRAINING if world.running_job else AdapterReason.SERVING
    return Readiness(True, reason, f"{by}; {more}" if more else by)


MODAL_REFUSALS = {
    ModalTrouble.NOT_DEPLOYED: AdapterReason.APP_NOT_DEPLOYED,
    ModalTrouble.CREDENTIALS_REFUSED: AdapterReason.CREDENTIALS_REFUSED,
    ModalTrouble.BILLING_REQUIRED: AdapterReason.BILLING_REQUIRED,
}

READY_CHECKS: tuple[Callable[[AdapterView], Readiness | None], ...] = (
    engine_refused,
    claim_missing,
    secret_missing,
    secret_invalid,
    deployment_missing,
    proxy_name_taken,
    served_name_taken,
    container_missing,
    storage_not_mounted,
    control_refused,
    server_misconfigured,
    modal_refuses,
    initial_version_failed,
    initial_version_not_started,
    initial_version_awaited,
    no_pod_ready,
    pod_unreachable,
    version_not_applied,
    load_failed,
    paused_for_a_step,
    asleep,
    loading,
    serving,
)
"""In this order; the last one always has an answer."""


def _quoted(view: AdapterView) -> str:
    message = view.world.init.message
    return f": {message}" if message else ""


def _troubled(view: AdapterView, state: ReplicaState, reason: AdapterReason) -> Readiness | None:
    troubled = view.first(state)
    if troubled is None:
        return None
    server = view.world.modal_server
    who = f"Pod {troubled.pod}" if server is None else f"App {server.place.app} on Modal"
    return Readiness(False, reason, f"{who}: {troubled.message}")
