"""Looking at resources on the cluster through kubectl."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TypeVar, cast

from pydantic import JsonValue

from claas_crds.base import ResourceModel
from claas_kube.objects.meta import Manifest
from claas_kube.objects.pods import Pod
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_operator.plan.queueing import finished
from tests.builders.resources import DEPLOYMENT
from tests.cluster import vllm
from tests.stack.install import Stack

M = TypeVar("M", bound=ResourceModel)
T = TypeVar("T")
POLL_SECONDS = 0.25


def wait_for(what: str, look: Callable[[], T | None], timeout_seconds: float) -> T:
    """Look again and again until there is something; raises TimeoutError that says what was waited for."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_seconds:g} s")
        time.sleep(POLL_SECONDS)


def _get(stack: Stack, kind: str, namespace: str, name: str) -> Manifest | None:
    text = stack.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
    return cast(Manifest, json.loads(text)) if text.strip() else None


def adapter(stack: Stack, namespace: str, name: str) -> AdapterObject:
    """A LoraAdapter; raises LookupError when there is none."""
    found = _get(stack, "loraadapter", namespace, name)
    if found is None:
        raise LookupError(f"no LoraAdapter {namespace}/{name}")
    return AdapterObject.model_validate(found)


def job(stack: Stack, namespace: str, name: str) -> JobObject:
    """A DistillJob; raises LookupError when there is none."""
    found = _get(stack, "distilljob", namespace, name)
    if found is None:
        raise LookupError(f"no DistillJob {namespace}/{name}")
    return JobObject.model_validate(found)


def pods(stack: Stack, namespace: str, selector: str) -> list[Pod]:
    """Pods by a label selector."""
    text = stack.kubectl("get", "pods", "-n", namespace, "-l", selector, "-o", "json")
    items = cast(list[JsonValue], json.loads(text)["items"])
    return [Pod.model_validate(item) for item in items]


def vllm_pods(stack: Stack, namespace: str) -> list[Pod]:
    """The ready vLLM pods of a namespace."""
    return [pod for pod in pods(stack, namespace, f"app.kubernetes.io/instance={DEPLOYMENT}") if pod.ready]


def vllm_url(stack: Stack, namespace: str, timeout_seconds: float = 240) -> str:
    """The address of the first ready vLLM pod, once there is one."""
    ready = wait_for(f"vLLM in {namespace}", lambda: vllm_pods(stack, namespace), timeout_seconds)
    return f"http://{ready[0].status.pod_ip}:{vllm.PORT}"


def wait_served(stack: Stack, namespace: str, name: str, version: int, timeout_seconds: float = 240) -> AdapterObject:
    """Wait until a LoraAdapter is Ready and serves a version."""

    def look() -> AdapterObject | None:
        found = adapter(stack, namespace, name)
        ready = any(each.type == "Ready" and each.status == "True" for each in found.status.conditions)
        return found if ready and found.status.served_version == version else None

    return wait_for(f"LoraAdapter {namespace}/{name} serving version {version}", look, timeout_seconds)


def wait_finished(stack: Stack, namespace: str, name: str, timeout_seconds: float = 180) -> JobObject:
    """Wait until a DistillJob is Complete or Failed."""

    def look() -> JobObject | None:
        found = job(stack, namespace, name)
        return found if finished(found.status.conditions) else None

    return wait_for(f"DistillJob {namespace}/{name} to finish", look, timeout_seconds)
