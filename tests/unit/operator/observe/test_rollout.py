"""When a Deployment's pods are settled, so that a step does not fight with a pod for a GPU."""

from __future__ import annotations

import pytest

from claas_kube.objects.pods import Pod
from claas_kube.objects.workloads import Deployment
from claas_operator.observe.rollout import STARTING_SECONDS, unsettled
from tests.builders.world import NOW, ago


def deployment(
    *, generation: int = 2, observed: int | None = 2, total: int = 1, new: int = 1, wanted: int = 1
) -> Deployment:
    status: dict[str, int] = {"replicas": total, "updatedReplicas": new}
    return Deployment.model_validate(
        {
            "metadata": {"name": "vllm", "generation": generation},
            "spec": {"replicas": wanted},
            # Zeros are left out by the API.
            "status": {name: value for name, value in status.items() if value}
            | ({} if observed is None else {"observedGeneration": observed}),
        }
    )


def pod(*, ready: bool = True, leaving: bool = False, age: float = 100, phase: str = "Running") -> Pod:
    deleted = {"deletionTimestamp": ago(1)} if leaving else {}
    return Pod.model_validate(
        {
            "metadata": {"name": "vllm-0", "creationTimestamp": ago(age), **deleted},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": str(ready)}]},
        }
    )


UNSETTLED: list[tuple[str, Deployment, list[Pod], str]] = [
    ("its change was not seen yet", deployment(generation=3), [pod()], "changed just now"),
    ("Recreate: the old pod is on its way out", deployment(total=0, new=0), [pod(leaving=True)], "on its way out"),
    ("Recreate: the new pod starts", deployment(), [pod(ready=False)], "starting"),
    ("RollingUpdate: old and new are there", deployment(total=2), [pod(), pod()], "1 old pods"),
    ("RollingUpdate: no new one yet", deployment(total=1, new=0), [pod()], "0 of 1"),
    ("scaled down, a pod is on its way out", deployment(wanted=0, total=0, new=0), [pod(leaving=True)], "on its way"),
]


@pytest.mark.parametrize(("found", "pods", "said"), [row[1:] for row in UNSETTLED], ids=[row[0] for row in UNSETTLED])
def test_a_deployment_is_not_settled_when(found: Deployment, pods: list[Pod], said: str) -> None:
    why = unsettled(found, pods, NOW)
    assert why is not None
    assert said in why


SETTLED: list[tuple[str, Deployment, list[Pod]]] = [
    ("all its pods are new and ready", deployment(), [pod()]),
    ("it wants no pod", deployment(wanted=0, total=0, new=0), []),
    ("a pod that was evicted is still listed", deployment(), [pod(), pod(leaving=True, phase="Failed")]),
    (
        "a pod beside others has been broken for long",
        deployment(wanted=2, total=2, new=2),
        [pod(), pod(ready=False, age=STARTING_SECONDS + 1)],
    ),
    ("no controller has written its status", deployment(observed=None, total=0, new=0), [pod()]),
]


@pytest.mark.parametrize(("found", "pods"), [row[1:] for row in SETTLED], ids=[row[0] for row in SETTLED])
def test_a_deployment_is_settled_when(found: Deployment, pods: list[Pod]) -> None:
    assert unsettled(found, pods, NOW) is None
