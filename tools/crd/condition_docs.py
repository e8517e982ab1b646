"""Meaning of every condition: for each type, the reasons it has when True, False and Unknown.

docs/conditions.md is generated from these tables. Tests check with `is_documented` that the operator uses no other
reasons.
"""

from __future__ import annotations

from dataclasses import dataclass

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.conditions import AdapterCondition, AdapterReason, ConditionStatus, JobCondition, JobReason

Reason = AdapterReason | JobReason | FailureReason


@dataclass(frozen=True)
class ReasonDoc:
    """One reason under one status of a condition."""

    reason: Reason
    meaning: str


@dataclass(frozen=True)
class StatusDoc:
    """One status of a condition: its meaning, and its possible reasons; none if it is never set."""

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
        " message quotes Kubernetes. The operator goes on by itself once the cause is removed.",
    ),
    (_A.LOADING, "A version is being loaded into the vLLM pods that do not serve it yet."),
    (
        _A.LOAD_FAILED,
        "vLLM refused to load the version, or it failed its probe. The version served before stays, and the load"
        " is retried.",
    ),
    (
        _A.ADAPTER_NOT_APPLIED,
        "A pod has loaded the version, but answers the probe as the base model does, also after the version was"
        " loaded again. The load is retried; restart the pod.",
    ),
    (_A.ASLEEP, "A pod sleeps or is paused, though not by a DistillJob. Somebody else paused it and has to wake it."),
    (
        _A.NO_READY_PODS,
        "The Deployment has no ready pod; the message says what its pods are doing. The version is loaded as soon as"
        " one is ready.",
    ),
    (
        _A.VLLM_UNREACHABLE,
        "A ready pod does not answer on the serving port, or a vLLM on Modal not at its address; the request is"
        " retried.",
    ),
    (
        _A.SERVICE_UNREACHABLE,
        "Modal's API does not answer, not in time, or wants fewer requests, so the servers there can't be told which"
        " version to serve. It is asked again with a back-off, and the version before is served on.",
    ),
)
_WRONG = (
    (
        _A.ENGINE_REFUSED,
        "The adapter's engine can't follow the spec. The message names each setting and says what to use; nothing is"
        " made until then, and jobs wait.",
    ),
    (_A.DEPLOYMENT_NOT_FOUND, "The Deployment named in `spec.serving.deploymentRef` does not exist."),
    (_A.STORAGE_NOT_FOUND, "The claim named in `spec.storage` does not exist."),
    (
        _A.STORAGE_NOT_MOUNTED,
        "The vLLM container does not mount the adapter's folder on the claim of `spec.storage`; the message says"
        " why.",
    ),
    (
        _A.CONTAINER_NOT_FOUND,
        "The Deployment has no container with the name in `spec.serving.container`; the message lists its"
        " containers.",
    ),
    (
        _A.SERVER_MISCONFIGURED,
        "vLLM's flags do not allow it to serve the adapter; the message names the flag or field and the value"
        " needed.",
    ),
    (_A.SECRET_NOT_FOUND, "A Secret that the spec names, or the key in it, does not exist."),
    (
        _A.SECRET_INVALID,
        "A Secret holds bytes that can't be sent as a token; the message says which and where.",
    ),
    (
        _A.CONTROL_REFUSED,
        "The server refused the control token or the API key. For three minutes after a rotation the adapter is"
        " not `Stalled`, because the pods' copies of the Secret follow later.",
    ),
    (
        _A.SERVED_NAME_TAKEN,
        "An older LoraAdapter is served under the same name by the same Deployment; of an app on Modal another"
        " LoraAdapter of any namespace has the name's pointer.",
    ),
    (
        _A.APP_NOT_DEPLOYED,
        "Modal has no such app, server or Volume in the environment; deploy the app (docs/modal.md). It is looked for"
        " again with a back-off of at most five minutes, and at once when the spec changes.",
    ),
    (
        _A.CREDENTIALS_REFUSED,
        "Modal refused the token of `spec.engine.modal.tokenSecretRef`, or its proxy that of"
        " `spec.serving.modalApp.proxyTokenSecretRef`; the message says which. A new token is used at once.",
    ),
    (
        _A.BILLING_REQUIRED,
        "Modal wants to be paid first: add credit, or raise the workspace's spend limit. It is asked again with a"
        " back-off of at most five minutes.",
    ),
    (
        _A.INITIALISATION_FAILED,
        "The initial version could not be made; the message says why, beginning with the trainer's reason, such as"
        " `CredentialsRefused` (see the reasons of `Trained`). It is retried.",
    ),
    (
        _A.REQUEST_REFUSED,
        "The API server refused a request of the operator: because of a wrong `spec.trainer`, a quota, missing"
        " permission or an admission webhook. The message quotes it. The request is retried.",
    ),
)
_UNSEEN = (
    _A.RECONCILE_FAILED,
    "The operator failed to process the adapter: the API server does not answer, or an object is not readable by"
    " this release. It is retried.",
)

ADAPTER_CONDITIONS: tuple[ConditionDoc, ...] = (
    ConditionDoc(
        AdapterCondition.READY,
        "Every ready vLLM pod serves the version that should be in service (kstatus).",
        (
            _true(
                "The adapter answers.",
                (_A.SERVING, "Every ready pod serves the version, which passed its probe."),
                (_A.TRAINING, "A step is under way. Requests are answered, or wait during the pause."),
            ),
            _false(
                "Some pods do not answer for the adapter, or answer with another version.",
                *_AT_WORK,
                *_WRONG,
            ),
            _unknown(
                "The state of the adapter is not known.",
                (_A.PENDING, "The operator has not made its first pass over the adapter."),
                _UNSEEN,
            ),
        ),
    ),
    ConditionDoc(
        AdapterCondition.RECONCILING,
        "The operator is working on the adapter (kstatus).",
        (
            _true(
                "The state will change by itself; wait.",
                *_AT_WORK,
                (_A.CONTROL_REFUSED, "The token was rotated a moment ago, and a pod still has the old one."),
                _UNSEEN,
            ),
            _false(
                "The operator has nothing left to do, or needs somebody else to act.",
                (_A.UP_TO_DATE, "Nothing is under way; `Stalled` says whether somebody has to act."),
            ),
            _unknown("Never set."),
        ),
    ),
    ConditionDoc(
        AdapterCondition.STALLED,
        "The adapter will not become ready until somebody changes something (kstatus). The operator goes on by"
        " itself afterwards.",
        (
            _true("Somebody has to act; the message says what to change.", *_WRONG),
            _false("Nothing has to be changed.", (_A.UP_TO_DATE, "Nobody has to act.")),
            _unknown("Never set."),
        ),
    ),
    ConditionDoc(
        AdapterCondition.SERVED,
        "At least one vLLM pod answers under the served name, with any version. The reason is that of `Ready`.",
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
        "The companion runs in the vLLM pods. Everything works without it too, at the cost that docs/vllm.md names.",
        (
            _true(
                "Swaps are seamless and control routes are locked.",
                (
                    _A.COMPANION_FOUND,
                    "The companion answers in every pod; the message says if it can't store its aliases.",
                ),
            ),
            _false(
                "The operator uses vLLM's own routes.",
                (
                    _A.COMPANION_MISSING,
                    "A pod answers without the companion: requests fail for a moment during a swap.",
                ),
            ),
            _unknown(
                "No pod has answered so far.",
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
    (
        _F.INVALID_SAMPLE,
        "Samples are wrong; the message names the first and its field, `status.invalidSamples` each. Serving was not"
        " paused.",
    ),
    (_F.MODEL_NOT_FOUND, "The base model, its tokenizer or its chat template can't be read."),
    (_F.HUB_UNREACHABLE, "The hub that has the base model does not answer, and the cache does not hold it."),
    (_F.PARENT_NOT_FOUND, "The version to train from is not on the volume."),
    (_F.PARENT_CORRUPT, "The version to train from does not match its digest."),
    (_F.PARENT_REJECTED, "Serving rejected the version to train from; the next attempt starts from another."),
    (
        _F.ADAPTER_MISMATCH,
        "The versions on the volume have another shape or base model; the message says which field differs.",
    ),
    (
        _F.FOREIGN_ADAPTER,
        "The adapter's folder holds an adapter of another trainer, which can't be imported; the message says what"
        " to do.",
    ),
    (_F.ENGINE_UNAVAILABLE, "The engine is not available in this image or on this node."),
    (_F.CREDENTIALS_REFUSED, "The engine's service refused the API key, or the key can't be read."),
    (_F.BILLING_REQUIRED, "The engine's service wants to be paid first."),
    (_F.RATE_LIMITED, "The engine's service refused requests because there were too many."),
    (_F.MODEL_RETIRED, "The engine's service does not train the base model, or does not any more."),
    (
        _F.CHECKPOINT_EXPIRED,
        "The engine's service no longer has the checkpoint of the version to train from; the message says what to"
        " do.",
    ),
    (_F.SERVICE_UNREACHABLE, "The engine's service does not answer, or not within the step's time."),
    (
        _F.APP_NOT_DEPLOYED,
        "The engine's service has no app of that name, or one of another release or base model: deploy it"
        " (docs/modal.md).",
    ),
    (_F.STEP_TIMED_OUT, "The engine's service did not finish the step in its time; it was ended, and is retried."),
    (
        _F.CALL_LOST,
        "The engine's service lost the step: its container died for good, or its answer was kept no longer; it is"
        " asked again.",
    ),
    (_F.GPU_MISMATCH, "The trainer's GPU is not the one that vLLM runs on; serving was not paused."),
    (_F.GPU_MEMORY_NOT_FREED, "vLLM slept, but its GPU memory did not become free."),
    (_F.OUT_OF_MEMORY, "The step does not fit into memory; it is not retried."),
    (_F.VLLM_UNREACHABLE, "A vLLM pod does not answer."),
    (_F.CONTROL_REFUSED, "The companion's lock refused the control token."),
    (_F.ALREADY_ASLEEP, "Somebody else has paused serving."),
    (_F.DRAIN_TIMED_OUT, "Running requests were not completed within `drainTimeoutSeconds`; none was aborted."),
    (_F.PAUSE_FAILED, "vLLM refused to pause."),
    (_F.RESUME_FAILED, "The trainer could not wake vLLM; the operator keeps trying."),
    (
        _F.SERVING_LOST,
        "A vLLM pod ended during a step with the hand-over Share; the step was ended and is retried.",
    ),
    (
        _F.WEIGHTS_NOT_SHAREABLE,
        "The step can't use the weights that vLLM serves (quantised or sharded); use another hand-over.",
    ),
    (
        _F.MAX_PAUSE_EXCEEDED,
        "The step needs a longer pause than `maxPauseSeconds`. It was not started, judged by its parent's step,"
        " or it was ended and serving woken. It is not retried.",
    ),
    (_F.NOT_FINITE, "The loss or the gradient is NaN or infinite; nothing was published."),
    (
        _F.POLICY_MOVED,
        "The step moved the policy further from its parent than `max_kl` allows; nothing was published.",
    ),
    (_F.STORAGE_FULL, "The volume has no space left."),
    (_F.STORAGE_READ_ONLY, "The volume is read-only at the moment."),
    (_F.STORAGE_FAILED, "Another error of the volume."),
    (
        _F.STORAGE_UNSUITABLE,
        "The volume's file system lacks an operation that publishing needs, as mounts of object stores do; the"
        " message names the operation.",
    ),
    (_F.PUBLISH_CONFLICT, "Another job has published from the same parent meanwhile."),
    (
        _F.VERSION_REJECTED,
        "vLLM refused to load the new version, or it failed its probe; the old one stays in service.",
    ),
    (_F.INTERRUPTED, "The trainer pod was asked to end."),
    (_F.INTERNAL, "A bug in the trainer; its log has the traceback."),
)
_REFUSED = (
    (
        _J.REQUEST_REFUSED,
        "The API server refused to start the step: because of a wrong `spec.trainer`, a quota, missing permission"
        " or an admission webhook. The message quotes it. The request is retried, and other jobs go first"
        " meanwhile.",
    ),
    (_J.RECONCILE_FAILED, "The operator failed to process the job; the message says why. It is retried."),
)
_LOST = (_J.TRAINER_LOST, "The trainer pod vanished without a result.")

JOB_CONDITIONS: tuple[ConditionDoc, ...] = (
    ConditionDoc(
        JobCondition.COMPLETE,
        "The step was taken and its version is in service; with `completeWhen: Published`, it is published."
        " Final, as in batch/v1 Job.",
        (
            _true(
                "Done.",
                (
                    _J.COMPLETED,
                    "Every ready vLLM pod serves the published version, or one that descends from it. `Served` is"
                    " False where that is not so: with `completeWhen: Published`, and when the version was passed"
                    " over.",
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
                "There will be no further attempt.",
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
            _true(
                "The job waits until somebody resumes it.",
                (_J.SUSPENDED, "`spec.suspend` is true; a running attempt was ended."),
            ),
            _false("It may run.", (_J.RESUMED, "`spec.suspend` was set back to false; the job queues again.")),
            _unknown("Never set."),
        ),
    ),
    ConditionDoc(
        JobCondition.ADMITTED,
        "The job holds the Lease of its vLLM Deployment, or of its adapter where steps are computed elsewhere: no"
        " other job may take a step there.",
        (
            _true(
                "The job holds the Lease.",
                (
                    _J.ADMITTED,
                    "The job took the Lease; a trainer is started now and after each failed attempt.",
                ),
            ),
            _false(
                "The job does not hold the Lease, or no longer.",
                (
                    _J.QUEUED,
                    "Waits for its turn: adapters take turns, an adapter's jobs come first come, first served. Of"
                    " steps that are computed elsewhere, the chart's `remote.maxConcurrentSteps` run at once.",
                ),
                (
                    _J.ADAPTER_NOT_FOUND,
                    "The adapter does not exist yet; the job waits for it for up to `activeDeadlineSeconds`.",
                ),
                (
                    _J.SAMPLES_NOT_FOUND,
                    "The object that holds the samples does not exist yet; the job waits for it for up to"
                    " `activeDeadlineSeconds`.",
                ),
                (
                    _J.TRAINER_NOT_STARTED,
                    "The trainer's pod could not start for some time. Other jobs go first, and it is retried;"
                    " this does not count as a failed attempt.",
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
                "The job has published no version.",
                (_J.ADAPTER_NOT_FOUND, "The adapter of `spec.adapterRef` does not exist."),
                (_J.ADAPTER_NOT_READY, "The next attempt waits for the adapter."),
                (_J.NO_HANDOVER, "The next attempt waits because serving can't make room for a step."),
                (
                    _J.TRAINER_NOT_STARTED,
                    "The trainer's pod can't start; the message quotes Kubernetes.",
                ),
                (_J.RUNNING, "The trainer is working."),
                (_J.RETRYING, "The last attempt failed and is retried; the message says why."),
                *_REFUSED,
                (
                    _J.RECOVERING,
                    "The last attempt ended without a report. Before the job ends, a pod without a GPU looks on"
                    " the volume for a version of this job.",
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
            _true(
                "Clients get answers from the new version.",
                (_J.IN_SERVICE, "Every ready vLLM pod serves it, or a version that descends from it."),
            ),
            _false(
                "Clients get answers from an older version.",
                *_REFUSED,
                (_J.PUTTING_INTO_SERVICE, "It is being loaded, or the Deployment has no ready pod to load it into."),
                (
                    _J.DEADLINE_EXCEEDED,
                    "It was published, but not in service in time; the message says why. It stays, and may still go"
                    " into service.",
                ),
                (
                    _J.PASSED_OVER,
                    "It was published and stays, and another version should serve that is not known to descend from"
                    " it. The job is Complete.",
                ),
                (
                    _F.VERSION_REJECTED,
                    "After it was published, serving refused it or a version that it descends from. It is never"
                    " served or trained from, and the job has failed.",
                ),
                (_J.ADAPTER_DELETED, "It was published, but the adapter was deleted before it went into service."),
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
        "Both resources report their state as conditions. A condition's `reason` is for programs and keeps its"
        " meaning"
        " between releases; its `message` is for people. The [glossary](glossary.md) explains the terms.",
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
