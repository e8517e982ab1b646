"""Why no vLLM pod is ready, told so that one knows what to do."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from claas_kube.objects.pods import Container, Pod
from claas_kube.objects.workloads import Deployment
from claas_operator.plan.server.unready import LONGEST_WORDS, no_pod_because, unready_because

PROBED = Container(name="vllm", liveness_probe={"httpGet": {"path": "/health"}})
NO_PROBE = Container(name="vllm")
PORT = "INFO starting\nValueError: VLLM_PORT 'tcp://10.0.0.9:8000' appears to be a URI.\n\n"


def pod(*statuses: JsonValue, phase: str = "Running", deleted: bool = False, **status: JsonValue) -> Pod:
    metadata: JsonValue = {"name": "vllm-0", **({"deletionTimestamp": "2026-05-04T12:00:00Z"} if deleted else {})}
    return Pod.model_validate(
        {"metadata": metadata, "status": {"phase": phase, "containerStatuses": list(statuses), **status}}
    )


def container(state: JsonValue, *, name: str = "vllm", before: JsonValue = None, restarts: int = 0) -> JsonValue:
    last: JsonValue = {"terminated": before} if before else {}
    return {"name": name, "state": state, "lastState": last, "restartCount": restarts}


def waiting(reason: str, message: str = "") -> JsonValue:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, reason: str = "Error", message: str = "") -> JsonValue:
    return {"exitCode": code, "reason": reason, "message": message}


RUNNING: JsonValue = {"running": {"startedAt": "2026-05-04T12:00:00Z"}}
UNSCHEDULED: JsonValue = [
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no nvidia.com/gpu"}
]

TOLD: list[tuple[str, Pod, str]] = [
    ("deleted", pod(container(RUNNING), deleted=True), "is being deleted"),
    (
        "no node",
        pod(phase="Pending", conditions=UNSCHEDULED),
        "is not scheduled: Unschedulable: 0/3 nodes: no nvidia.com/gpu",
    ),
    (
        "no image",
        pod(container(waiting("ImagePullBackOff", "Back-off pulling image x")), phase="Pending"),
        "has its container vllm down: ImagePullBackOff: Back-off pulling image x",
    ),
    (
        "crashes",
        pod(container(waiting("CrashLoopBackOff", "back-off 5m0s"), before=ended(1, message=PORT), restarts=7)),
        "has its container vllm down: CrashLoopBackOff, after 7 restarts; it ended with exit code 1 (Error):"
        " ValueError: VLLM_PORT 'tcp://10.0.0.9:8000' appears to be a URI.",
    ),
    (
        "killed for memory",
        pod(container(waiting("CrashLoopBackOff"), before=ended(137, "OOMKilled"), restarts=1)),
        "has its container vllm down: CrashLoopBackOff, after 1 restarts; it ended with exit code 137 (OOMKilled)",
    ),
    (
        "ended a moment ago",
        pod(container({"terminated": ended(70)})),
        "has its container vllm down: it ended with exit code 70 (Error)",
    ),
    (
        "a missing ConfigMap of the environment",
        pod(container(waiting("CreateContainerConfigError", 'configmap "x" not found')), phase="Pending"),
        'has its container vllm down: CreateContainerConfigError: configmap "x" not found',
    ),
    (
        "its init container fails",
        pod(
            container(waiting("PodInitializing")),
            phase="Pending",
            initContainerStatuses=[container(waiting("CrashLoopBackOff"), name="fetch", before=ended(2), restarts=3)],
        ),
        "waits for its init container fetch: CrashLoopBackOff, after 3 restarts; it ended with exit code 2 (Error)",
    ),
    ("starts", pod(container(waiting("ContainerCreating")), phase="Pending"), "is Pending"),
    ("loads its model", pod(container(RUNNING)), "runs its container vllm, which is not ready"),
    (
        "loads it again",
        pod(container(RUNNING, before=ended(70), restarts=1)),
        "runs its container vllm, which is not ready after 1 restarts;"
        " before that it ended with exit code 70 (Error)",
    ),
    (
        "another container of it is down",
        pod(container(waiting("CrashLoopBackOff"), name="proxy"), container(RUNNING)),
        "runs its container vllm, which is not ready",
    ),
    ("evicted", pod(phase="Failed", reason="Evicted", message="low on memory"), "is Failed: Evicted: low on memory"),
]


@pytest.mark.parametrize(("found", "said"), [row[1:] for row in TOLD], ids=[row[0] for row in TOLD])
def test_a_pod_that_is_not_ready(found: Pod, said: str) -> None:
    assert unready_because(found, PROBED) == said


def test_a_server_that_nothing_would_restart_is_told_as_that() -> None:
    assert "; it has no livenessProbe, so nothing restarts it" in unready_because(pod(container(RUNNING)), NO_PROBE)
    assert "livenessProbe" not in unready_because(pod(container(RUNNING)), PROBED)


def test_last_words_are_never_those_of_a_request() -> None:
    log = "\n".join(
        [
            "RuntimeError: the engine is dead",
            "INFO Received request cmpl-1: params: SamplingParams(n=1), lora_request: None.",
            "DEBUG Request cmpl-1 details: prompt: 'a private text'",
            "INFO Generated response cmpl-1: output: 'another one', output_token_ids: None",
        ]
    )
    said = unready_because(pod(container({"terminated": ended(1, message=log)})), PROBED)
    assert said.endswith("it ended with exit code 1 (Error): RuntimeError: the engine is dead")
    logged = pod(container({"terminated": ended(1, message=log.partition("\n")[2])}))
    assert unready_because(logged, PROBED).endswith("it ended with exit code 1 (Error)")


def test_last_words_are_one_line_and_cut() -> None:
    long = pod(container({"terminated": ended(1, message=f"a private prompt\n{'x' * 5000}")}))
    said = unready_because(long, PROBED)
    assert "private" not in said
    assert len(said) < LONGEST_WORDS + 100


def deployment(replicas: int = 1, *conditions: JsonValue) -> Deployment:
    return Deployment.model_validate(
        {"metadata": {"name": "vllm"}, "spec": {"replicas": replicas}, "status": {"conditions": list(conditions)}}
    )


QUOTA: JsonValue = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}


@pytest.mark.parametrize(
    ("found", "troubles", "said"),
    [
        (deployment(0), [], "it is scaled to 0"),
        (deployment(1), [], "it has none yet"),
        (None, [], "it has none yet"),
        (deployment(1, QUOTA), [], "its pods can't be made: FailedCreate: exceeded quota"),
        (deployment(1), [("vllm-0", "is Pending")], "vllm-0 is Pending"),
        (
            deployment(5),
            [(f"vllm-{number}", "is Pending") for number in range(5)],
            "vllm-0 is Pending; vllm-1 is Pending; vllm-2 is Pending; and 2 more",
        ),
    ],
)
def test_no_pod_is_ready_because(found: Deployment | None, troubles: list[tuple[str, str]], said: str) -> None:
    assert no_pod_because("vllm", found, troubles) == f"No pod of Deployment vllm is ready: {said}"
