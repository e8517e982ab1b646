"""What every condition means: for each type, the reasons it has when True, False and Unknown.

docs/conditions.md is generated from these tables, and `is_documented` lets tests hold the operator to them.
"""

from __future__ import annotations

from dataclasses import dataclass

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.conditions import (
    AdapterCondition,
    AdapterReason,
    ConditionStatus,
    JobCondition,
    JobReason,
)

Reason = AdapterReason | JobReason | FailureReason


@dataclass(frozen=True)
class ReasonDoc:
    """One reason under one status of a condition."""

    reason: Reason
    meaning: str


@dataclass(frozen=True)
class StatusDoc:
    """One status of a condition: what it says, and the reasons it can have; none when it is never set."""

    status: ConditionStatus
    meaning: str
    reasons: tuple[ReasonDoc, ...] = ()


@dataclass(frozen=True)
class ConditionDoc:
    """One condition type; `statuses` are True, False and Unknown, in that order."""

    type: AdapterCondition | JobCondition
    meaning: str
    statuses: tuple[StatusDoc, StatusDoc, StatusDoc]


def _true(meaning: str, *reasons: tuple[Reason, str]) -> StatusDoc:
    return _status(ConditionStatus.TRUE, meaning, reasons)


def _false(meaning: str, *reasons: tuple[Reason, str]) -> StatusDoc:
    return _status(ConditionStatus.FALSE, meaning, reasons)


def _unknown(meaning: str, *reasons: tuple[Reason, str]) -> StatusDoc:
    return _status(ConditionStatus.UNKNOWN, meaning, reasons)


def _status(status: ConditionStatus, meaning: str, reasons: tuple[tuple[Reason, str], ...]) -> StatusDoc:
    return StatusDoc(status, meaning, tuple(ReasonDoc(reason, text) for reason, text in reasons))


_A = AdapterReason
_J = JobReason
_F = FailureReason

_AT_WORK = (
    (_A.INITIALISING, "The initial version is being made."),
    (
        _A.TRAINER_NOT_STARTED,
        "The pod that makes the initial version can't start: quota, admission, scheduling, a volume, an image. The"
        " message quotes what Kubernetes says; it goes on by itself once that is mended.",
    ),
    (_A.LOADING, "A version is being loaded into the vLLM pods that do not serve it yet."),
    (
        _A.LOAD_FAILED,
        "vLLM refused the version or it failed its probe; what served before goes on, and it is tried again.",
    ),
    (
        _A.ADAPTER_NOT_APPLIED,
        "A pod has the version loaded, and the base model answers the probe in its place; loading it again did not"
        " help. It is tried again; restart the pod.",
    ),
    (_A.ASLEEP, "A pod sleeps or is paused, and not by a DistillJob: whoever paused it has to wake it."),
    (
        _A.NO_READY_PODS,
        "The Deployment has no ready pod; the message says what its pods are doing. The version is loaded as soon as"
        " one is ready.",
    ),
    (_A.VLLM_UNREACHABLE, "A ready pod does not answer on the serving port; it is asked again."),
)
_WRONG = (
    (_A.DEPLOYMENT_NOT_FOUND, "The Deployment named in `spec.serving.deploymentRef` does not exist."),
    (_A.STORAGE_NOT_FOUND, "The claim named in `spec.storage` does not exist."),
    (
        _A.STORAGE_NOT_MOUNTED,
        "The vLLM container does not see the adapter's folder on the claim of `spec.storage`; the message says why.",
    ),
    (
        _A.CONTAINER_NOT_FOUND,
        "The Deployment has no container of the name in `spec.serving.container`; the message lists those it has.",
    ),
    (
        _A.SERVER_MISCONFIGURED,
        "vLLM was started so that it can't serve the adapter; the message names flag or field and the value needed.",
    ),
    (_A.SECRET_NOT_FOUND, "A Secret that the spec names, or the key in it, does not exist."),
    (
        _A.SECRET_INVALID,
        "A Secret has bytes that can't be sent as a token; the message says which and where.",
    ),
    (
        _A.CONTROL_REFUSED,
        "The server refused the control token or the API key. A token that changed less than three minutes ago is not"
        " told as `Stalled` yet: the pods' copies of the Secret follow.",
    ),
    (_A.SERVED_NAME_TAKEN, "An older LoraAdapter is served under the same name by the same Deployment."),
    (_A.INITIALISATION_FAILED, "The initial version could not be made; the message says why. It is tried again."),
    (
        _A.REQUEST_REFUSED,
        "The API server refused what the operator asked of it: a wrong `spec.trainer`, a quota, a right or an"
        " admission webhook; the message has its words. It is tried again.",
    ),
)
_UNSEEN = (
    _A.RECONCILE_FAILED,
    "The operator could not look at the adapter: the API server does not answer, or it holds something that this"
    " release can't read. It is tried again.",
)

ADAPTER_CONDITIONS: tuple[ConditionDoc, ...] = (
    ConditionDoc(
        AdapterCondition.READY,
        "The version that should be in service is served by every ready vLLM pod (kstatus).",
        (
            _true(
                "The adapter answers.",
                (_A.SERVING, "Every ready pod serves the version and it passed its probe."),
                (_A.TRAINING, "A step is under way: requests are answered, or wait for the length of the pause."),
            ),
            _false(
                "The adapter does not answer everywhere, or does not answer with the right version.",
                *_AT_WORK,
                *_WRONG,
            ),
            _unknown(
                "The adapter was not looked at yet.",
                (_A.PENDING, "The operator has not made its first pass over the adapter."),
                _UNSEEN,
            ),
        ),
    ),
    ConditionDoc(
        AdapterCondition.RECONCILING,
        "The operator is at work on the adapter and has not finished (kstatus).",
        (
            _true(
                "Something changes by itself; wait.",
                *_AT_WORK,
                (_A.CONTROL_REFUSED, "The token changed a moment ago, and a pod has the old one yet."),
                _UNSEEN,
            ),
            _false(
                "Nothing is left to do, or nothing that can be done without you.",
                (_A.UP_TO_DATE, "There is nothing to wait for; `Stalled` says whether somebody has to act."),
            ),
            _unknown("Never set."),
        ),
    ),
    ConditionDoc(
        AdapterCondition.STALLED,
        "The adapter will not become ready until somebody changes something (kstatus). It heals by itself once that"
        " is done.",
        (
            _true("Somebody has to act; the message says on what.", *_WRONG),
            _false("Nothing stands in the way.", (_A.UP_TO_DATE, "Nobody has to act.")),
            _unknown("Never set."),
        ),
    ),
    ConditionDoc(
        AdapterCondition.SERVED,
        "At least one vLLM pod answers under the served name, with whichever version. Its reason is that of `Ready`.",
        (
            _true(
                "Clients get answers from this adapter.",
                (_A.SERVING, "`status.servedVersion` answers on every ready pod."),
                (_A.TRAINING, "A step is under way and serving goes on meanwhile."),
                *_AT_WORK,
                *_WRONG,
            ),
            _false(
                "Clients get no answer from this adapter.",
                (_A.TRAINING, "Serving is paused for a step; requests wait and are answered after it."),
                *_AT_WORK,
                *_WRONG,
            ),
            _unknown("Never set."),
        ),
    ),
    ConditionDoc(
        AdapterCondition.COMPANION,
        "The companion runs in the vLLM pods. Without it everything works, but see docs/vllm.md for what is lost.",
        (
            _true(
                "Swaps are seamless and control routes are locked.",
                (_A.COMPANION_FOUND, "It answers in every pod; the message says if it can't keep its aliases."),
            ),
            _false(
                "vLLM's own routes are used.",
                (_A.COMPANION_MISSING, "A pod answers without it: a swap has a moment in which requests fail."),
            ),
            _unknown(
                "No pod could be asked so far.",
                (_A.PENDING, "No vLLM pod has answered yet."),
                (_A.CONTROL_REFUSED, "A pod refuses the control token or the API key."),
            ),
        ),
    ),
)

_ENDINGS = (
    (_J.ADAPTER_DELETED, "The adapter was deleted before the job was done."),
    (
        _J.DEADLINE_EXCEEDED,
        "The job ran longer than `activeDeadlineSeconds`. If `Trained` is True, its version is published and stays.",
    ),
    (_J.SAMPLES_NOT_FOUND, "The ConfigMap, Secret, claim or key that holds the samples does not exist."),
)
_TRAINER_FAILURES = (
    (_F.INVALID_INPUT, "The input document or a training setting is wrong."),
    (_F.INVALID_SAMPLE, "A sample is wrong; the message names the sample and the field. Serving was not paused."),
    (_F.MODEL_NOT_FOUND, "The base model, its tokenizer or its chat template can't be read."),
    (_F.HUB_UNREACHABLE, "The base model is on a hub that does not answer, and not in the cache."),
    (_F.PARENT_NOT_FOUND, "The version to train from is not on the volume."),
    (_F.PARENT_CORRUPT, "The version to train from does not match its digest."),
    (_F.PARENT_REJECTED, "The version to train from was refused by serving; the next attempt takes another."),
    (
        _F.ADAPTER_MISMATCH,
        "The versions on the volume are of another shape or another base; the message says which field differs.",
    ),
    (
        _F.FOREIGN_ADAPTER,
        "The adapter's folder holds an adapter that was not made here, which can't be imported; the message says what"
        " to do.",
    ),
    (_F.ENGINE_UNAVAILABLE, "The engine can't be had in this image or on this node."),
    (_F.GPU_MISMATCH, "The trainer's GPU is not the one that vLLM runs on; serving was not paused."),
    (_F.GPU_MEMORY_NOT_FREED, "vLLM slept and its GPU memory did not become free."),
    (_F.OUT_OF_MEMORY, "The step does not fit into memory; it is not tried again as it is."),
    (_F.VLLM_UNREACHABLE, "A vLLM pod does not answer."),
    (_F.CONTROL_REFUSED, "The companion's lock refused the control token."),
    (_F.ALREADY_ASLEEP, "Somebody else has paused serving."),
    (_F.DRAIN_TIMED_OUT, "Running requests were not answered within `drainTimeoutSeconds`; none was ended."),
    (_F.PAUSE_FAILED, "vLLM refused to pause."),
    (_F.RESUME_FAILED, "vLLM could not be woken by the trainer; the operator goes on trying."),
    (
        _F.SERVING_LOST,
        "A vLLM pod ended while a step was taken beside it (hand-over Share); the step was ended and is tried again.",
    ),
    (
        _F.WEIGHTS_NOT_SHAREABLE,
        "The weights that vLLM serves can't be trained on as they are (quantised, sharded); use another hand-over.",
    ),
    (
        _F.MAX_PAUSE_EXCEEDED,
        "The step needs a longer pause than `maxPauseSeconds`: it was not begun, by what its parent's step took, or"
        " it was ended and serving woken. It is not tried again as it is.",
    ),
    (_F.NOT_FINITE, "Loss or gradient is NaN or infinite; nothing was published."),
    (_F.POLICY_MOVED, "The step moved the policy further than `max_kl` allows; nothing was published."),
    (_F.STORAGE_FULL, "The volume has no space left."),
    (_F.STORAGE_READ_ONLY, "The volume can't be written at the moment."),
    (_F.STORAGE_FAILED, "The volume failed in another way."),
    (
        _F.STORAGE_UNSUITABLE,
        "The volume's file system lacks an operation that publishing needs, as object-store mounts do; the message"
        " names the operation.",
    ),
    (_F.PUBLISH_CONFLICT, "Another job published from the same parent meanwhile."),
    (_F.VERSION_REJECTED, "vLLM refused the new version, or it failed its probe; the old one stays in service."),
    (_F.INTERRUPTED, "The trainer pod was told to end."),
    (_F.INTERNAL, "A fault of the trainer itself; its log has the trace."),
)
_REFUSED = (
    (
        _J.REQUEST_REFUSED,
        "The API server refused to start the step: a wrong `spec.trainer`, a quota, a right or an admission webhook;"
        " the message has its words. It is tried again, and other jobs go first meanwhile.",
    ),
    (_J.RECONCILE_FAILED, "The operator could not look at the job; the message says why. It is tried again."),
)
_LOST = (_J.TRAINER_LOST, "The trainer pod vanished without a result.")

JOB_CONDITIONS: tuple[ConditionDoc, ...] = (
    ConditionDoc(
        JobCondition.COMPLETE,
        "The step was taken, published and is in service, or with `completeWhen: Published` published. Final, as in"
        " batch/v1 Job.",
        (
            _true(
                "Done.",
                (
                    _J.COMPLETED,
                    "The version was published and every ready vLLM pod serves it; with `completeWhen: Published` it"
                    " is published, and `Served` says whether it is in service.",
                ),
            ),
            _false("Never set: the condition appears when it becomes True."),
            _unknown("Never set."),
        ),
    ),
    ConditionDoc(
        JobCondition.FAILED,
        "The job has failed for good. Final, as in batch/v1 Job.",
        (
            _true(
                "No further attempt is made.",
                *_ENDINGS,
                (_J.ADAPTER_NOT_FOUND, "The adapter of `spec.adapterRef` does not exist."),
                _LOST,
                *_TRAINER_FAILURES,
            ),
            _false("Never set: the condition appears when it becomes True."),
            _unknown("Never set."),
        ),
    ),
    ConditionDoc(
        JobCondition.SUSPENDED,
        "The job does not run because `spec.suspend` says so.",
        (
            _true("It waits for you.", (_J.SUSPENDED, "`spec.suspend` is true; a running attempt was ended.")),
            _false("It may run.", (_J.RESUMED, "`spec.suspend` was set back to false; the job queues again.")),
            _unknown("Never set."),
        ),
    ),
    ConditionDoc(
        JobCondition.ADMITTED,
        "The job holds the Lease of its vLLM Deployment: it is its turn, and no other step runs there.",
        (
            _true(
                "Its turn has come.",
                (
                    _J.ADMITTED,
                    "The job took the Lease; a trainer is started, and started again after a failed attempt.",
                ),
            ),
            _false(
                "It is not, or no longer, its turn.",
                (_J.QUEUED, "Other steps on the same Deployment come first."),
                (
                    _J.ADAPTER_NOT_FOUND,
                    "The adapter does not exist yet; the job waits for it, at most for `activeDeadlineSeconds`.",
                ),
                (
                    _J.SAMPLES_NOT_FOUND,
                    "What holds the samples does not exist yet; the job waits, at most for `activeDeadlineSeconds`.",
                ),
                (
                    _J.TRAINER_NOT_STARTED,
                    "The trainer's pod could not start for a while; other jobs go first, and it is tried again."
                    " That is no failed attempt.",
                ),
                (_J.ADAPTER_NOT_READY, "The adapter can't be trained yet; the job waits for it."),
                (_J.NO_HANDOVER, "Serving can't make room for a step; the message says which flag to add to vLLM."),
                (_J.SUSPENDED, "`spec.suspend` is true."),
                *_REFUSED,
            ),
            _unknown("Never set."),
        ),
    ),
    ConditionDoc(
        JobCondition.TRAINED,
        "The step was taken and its version is on the volume.",
        (
            _true(
                "`status.producedVersion` names the version.",
                (_J.STEP_TAKEN, "This attempt took the step and published."),
                (_J.ALREADY_PUBLISHED, "An earlier attempt had published; no step was taken twice."),
            ),
            _false(
                "There is no version of this job.",
                (_J.ADAPTER_NOT_FOUND, "The adapter of `spec.adapterRef` does not exist."),
                (_J.ADAPTER_NOT_READY, "The next attempt waits for the adapter."),
                (_J.NO_HANDOVER, "The next attempt waits: serving can't make room for a step."),
                (
                    _J.TRAINER_NOT_STARTED,
                    "The trainer's pod can't start; the message quotes what Kubernetes says of it.",
                ),
                (_J.RUNNING, "The trainer is at work."),
                (_J.RETRYING, "The last attempt failed and another one follows; the message says why."),
                *_REFUSED,
                (
                    _J.RECOVERING,
                    "The last attempt ended without telling what came of it: before the job ends, a pod without a GPU"
                    " looks on the volume for a version of this job.",
                ),
                *_ENDINGS,
                _LOST,
                *_TRAINER_FAILURES,
            ),
            _unknown("Never set."),
        ),
    ),
    ConditionDoc(
        JobCondition.SERVED,
        "The job's version answers under the served name.",
        (
            _true("Clients get the new version.", (_J.IN_SERVICE, "Every ready vLLM pod serves it, or a later one.")),
            _false(
                "Clients get an older version.",
                *_REFUSED,
                (_J.PUTTING_INTO_SERVICE, "It is being loaded, or the Deployment has no pod that could serve it."),
                (
                    _J.DEADLINE_EXCEEDED,
                    "It was published and not in service in time; the message says why. It stays the newest version,"
                    " and is still put into service.",
                ),
                (_J.ADAPTER_DELETED, "It was published, and the adapter was deleted before it was in service."),
            ),
            _unknown("Never set."),
        ),
    ),
)


def is_documented(condition: AdapterCondition | JobCondition, status: ConditionStatus, reason: str) -> bool:
    """Whether the tables have this reason under this status of this condition."""
    table = ADAPTER_CONDITIONS if isinstance(condition, AdapterCondition) else JOB_CONDITIONS
    return any(
        each.reason.value == reason
        for doc in table
        if doc.type is condition
        for group in doc.statuses
        if group.status is status
        for each in group.reasons
    )


def conditions_page() -> str:
    """docs/conditions.md: both tables as Markdown."""
    lines = [
        "# Conditions",
        "",
        "Both resources report their state as conditions. A condition's `reason` is for programs and does not change"
        " its meaning between releases; its `message` is for people.",
        "",
    ]
    for kind, table in (("LoraAdapter", ADAPTER_CONDITIONS), ("DistillJob", JOB_CONDITIONS)):
        lines += [f"## {kind}", ""]
        for doc in table:
            lines += [f"### {doc.type.value}", "", doc.meaning, "", "| Status | Reason | Meaning |", "|---|---|---|"]
            for group in doc.statuses:
                lines.append(f"| **{group.status.value}** | | {group.meaning} |")
                lines += [
                    f"| {group.status.value} | `{each.reason.value}` | {each.meaning} |" for each in group.reasons
                ]
            lines.append("")
    return "\n".join(lines)
