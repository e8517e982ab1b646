"""A LoraAdapter's conditions: Ready and those that follow from it, and CompanionReady."""

from __future__ import annotations

from collections.abc import Sequence

from claas_crds.v1alpha1.conditions import AdapterCondition, AdapterReason, is_true
from claas_crds.v1alpha1.lora_adapter import Replica, ReplicaState
from claas_operator.plan.adapter.readiness import Readiness
from claas_operator.plan.conditions import ConditionDraft
from claas_operator.plan.world import AdapterWorld


def write_conditions(
    draft: ConditionDraft, world: AdapterWorld, readiness: Readiness, replicas: Sequence[Replica]
) -> None:
    """Write them all."""
    stalled = readiness.stalled
    progressing = not readiness.ready and not stalled
    # That a step begins or ends is told by its job.
    quiet = readiness.ready and is_true(draft.conditions, AdapterCondition.READY)
    draft.set(
        AdapterCondition.READY, readiness.ready, readiness.reason, readiness.message, warning=stalled, quiet=quiet
    )
    # One Event for a change is enough: the other conditions follow from Ready.
    serving = [replica for replica in replicas if replica.state is ReplicaState.SERVING]
    draft.set(AdapterCondition.SERVED, bool(serving), readiness.reason, readiness.message, quiet=True)
    draft.set(
        AdapterCondition.RECONCILING,
        progressing,
        readiness.reason if progressing else AdapterReason.UP_TO_DATE,
        readiness.message if progressing else "Nothing is under way",
        quiet=True,
    )
    draft.set(
        AdapterCondition.STALLED,
        stalled,
        readiness.reason if stalled else AdapterReason.UP_TO_DATE,
        readiness.message if stalled else "Nothing is in the way",
        quiet=True,
    )
    _write_companion(draft, world)


def _write_companion(draft: ConditionDraft, world: AdapterWorld) -> None:
    if world.modal is not None:
        _write_companion_on_modal(draft, answered=world.modal.answered is not None)
        return
    reached = [pod for pod in world.pods if pod.server is not None and pod.server.reachable]
    refusing = next((pod for pod in reached if pod.server is not None and pod.server.refused), None)
    if refusing is not None and refusing.server is not None:
        message = f"Pod {refusing.name} does not let itself be asked: {refusing.server.error}"
        draft.set(AdapterCondition.COMPANION, None, AdapterReason.CONTROL_REFUSED, message, quiet=True)
        return
    asked = [pod.server for pod in reached if pod.server is not None]
    if not asked:
        if not is_true(draft.conditions, AdapterCondition.COMPANION):
            message = "No vLLM pod has answered yet"
            draft.set(AdapterCondition.COMPANION, None, AdapterReason.PENDING, message, quiet=True)
        return
    if not all(server.companion for server in asked):
        draft.set(
            AdapterCondition.COMPANION,
            False,
            AdapterReason.COMPANION_MISSING,
            "vLLM runs without the companion module: a swap makes requests fail for a moment, a restarted pod "
            "serves the base model until it is loaded again, and control routes are open to whoever may chat",
            warning=True,
        )
        return
    said = "The companion answers in every pod"
    if not all(server.persisted for server in asked):
        said += "; it can't write its alias folder, so a restarted pod waits for the operator"
    if not all(server.companion_supported for server in asked):
        said += "; this vLLM release is not one it was tested with"
    draft.set(AdapterCondition.COMPANION, True, AdapterReason.COMPANION_FOUND, said, quiet=True)


def _write_companion_on_modal(draft: ConditionDraft, *, answered: bool) -> None:
    if answered:
        message = "A version has answered under its own name, which the companion adds"
        draft.set(AdapterCondition.COMPANION, True, AdapterReason.COMPANION_FOUND, message, quiet=True)
    elif not is_true(draft.conditions, AdapterCondition.COMPANION):
        message = "No version has answered yet"
        draft.set(AdapterCondition.COMPANION, None, AdapterReason.PENDING, message, quiet=True)
