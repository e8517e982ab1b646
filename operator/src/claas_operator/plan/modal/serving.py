"""What to ask of Modal for an adapter, and what its status says of the servers there."""

from __future__ import annotations

from claas_crds.v1alpha1.lora_adapter import Replica, ReplicaState
from claas_crds.v1alpha1.version import AdapterVersion, VersionVerdict
from claas_operator.plan.actions import Action, ConfirmPointer, LookAtModal, Note, WritePointer
from claas_operator.plan.adapter.engine import refusals_of
from claas_operator.plan.lineage.lineage import Lineage
from claas_operator.plan.modal.pointer import ModalServer, ServedPointer, pointer_to
from claas_operator.plan.modal.state import (
    ASKS_SERVER,
    LOOK_AGAIN_SECONDS,
    ModalCall,
    ModalState,
    ModalTrouble,
    confirmed,
)
from claas_operator.plan.world import AdapterWorld

_STATES = {
    ModalTrouble.NOT_YET: ReplicaState.LOADING,
    ModalTrouble.REFUSED: ReplicaState.LOAD_FAILED,
}


def modal_actions(world: AdapterWorld, desired: AdapterVersion | None) -> list[Action]:
    """The next call, unless one is under way or has to wait. No server is asked once the version has answered: each
    request keeps a paid container awake. The pointer is looked at now and then, which wakes none."""
    modal, server = world.modal, world.modal_server
    if modal is None or server is None or not world.secrets.usable or refusals_of(world) or world.name_taken_by:
        return []
    wanted = pointer_to(world.adapter, desired)
    call = _next_call(world, modal, wanted)
    if call is None or modal.calling in (call, ModalCall.LOOK, ModalCall.POINT) or _rests(world, modal, call):
        return []
    match call:
        case ModalCall.LOOK:
            return [LookAtModal(server, world.adapter.served_name)]
        case ModalCall.POINT if wanted is not None:
            return [WritePointer(server, wanted)]
        case ModalCall.CONFIRM if wanted is not None:
            url = modal.url if modal.setback is None else None
            return [ConfirmPointer(server, wanted, url)]
    return []


def _next_call(world: AdapterWorld, modal: ModalState, wanted: ServedPointer | None) -> ModalCall | None:
    if not modal.looked:
        return ModalCall.LOOK
    if wanted is None:
        return None
    if modal.pointer != wanted:
        return ModalCall.POINT
    if not confirmed(modal, wanted, world.adapter.status.served_version):
        return ModalCall.CONFIRM
    known_at = modal.known_at or world.now
    return ModalCall.LOOK if (world.now - known_at).total_seconds() >= LOOK_AGAIN_SECONDS else None


def _rests(world: AdapterWorld, modal: ModalState, call: ModalCall) -> bool:
    """Whether the next try has to wait. One with another token has not, nor one that asks somebody else."""
    setback, changed = modal.setback, world.secrets.changed
    if setback is None or (changed is not None and changed > setback.at):
        return False
    if setback.trouble in ASKS_SERVER and call is not ModalCall.CONFIRM:
        return False
    return world.now < setback.retry_at


def rest_left(world: AdapterWorld) -> float | None:
    """Seconds until the next call may be made; None: nothing waits for that."""
    modal = world.modal
    if modal is None or modal.setback is None or modal.calling is not None:
        return None
    return max(0.0, (modal.setback.retry_at - world.now).total_seconds())


def with_refusal(world: AdapterWorld, lineage: Lineage) -> AdapterVersion | None:
    """The new version that the containers refuse, as a rejected one; None where there is none, or no other version
    to go back to."""
    modal, candidate = world.modal, lineage.candidate
    if modal is None or modal.refused is None or candidate is None:
        return None
    pointer = pointer_to(world.adapter, candidate)
    before = lineage.versions.get(candidate.parent) if candidate.parent is not None else None
    if pointer is None or not pointer.same_version(modal.refused) or before is None or before.weights is None:
        return None
    return candidate.model_copy(update={"verdict": VersionVerdict.REJECTED})


def rejection_note(world: AdapterWorld, refused: AdapterVersion) -> Note:
    """The Event about it."""
    said = world.modal.setback.message if world.modal is not None and world.modal.setback is not None else ""
    told = f"Version {refused.number} is rejected, and the version before it is served on: {said}"
    return Note("VersionRejected", told, warning=True)


def modal_replica(world: AdapterWorld, server: ModalServer, desired: AdapterVersion | None) -> Replica:
    """The containers of the app as one replica: a request can't address a single one."""
    modal = world.modal
    assert modal is not None
    name = f"modal:{server.place.app}"
    before = world.adapter.status.served_version if world.name_taken_by is None else None
    wanted = pointer_to(world.adapter, desired)
    if desired is not None and wanted is None:
        lacking = f"version {desired.number} has no files on the Modal Volume"
        return Replica(pod=name, version=before, state=ReplicaState.LOAD_FAILED, message=lacking)
    # An operator that starts takes nothing back that status says, before it knows the pointer.
    unknown = not modal.looked and modal.setback is None and wanted is not None and before == wanted.version
    if wanted is not None and world.name_taken_by is None and (unknown or confirmed(modal, wanted, before)):
        return Replica(pod=name, version=wanted.version, state=ReplicaState.SERVING, message=_eventual(modal))
    setback = modal.setback
    if setback is None:
        return Replica(pod=name, version=before, state=ReplicaState.LOADING, message="it is being asked")
    state = _STATES.get(setback.trouble, ReplicaState.UNREACHABLE)
    return Replica(pod=name, version=before, state=state, message=setback.message)


def _eventual(modal: ModalState) -> str | None:
    if modal.containers < 2:
        return None
    return (
        f"up to {modal.containers} containers, of which one has answered with the version; each of the others takes"
        " it up within seconds"
    )
