"""Where a sample's texts could have been written, beside where they belong."""

from __future__ import annotations

from collections.abc import Sequence

from claas_kube.objects.resources import JobObject
from tests.e2e.stage.scene import Scene
from tests.stack.install import GATEWAY_DEPLOYMENT, OPERATOR_DEPLOYMENT, SYSTEM_NAMESPACE

JOBS = "distilljobs.claas.dev"


def assert_nowhere(words: Sequence[str], scene: Scene, job: JobObject, job_document: str) -> None:
    """None of these words is in an object of the namespace other than a DistillJob, in `job_document`, in a log of
    operator, gateway or the job's trainers, or in a file of the version that it made.

    Texts in Secrets are encoded: whoever calls this looks that theirs are gone.
    """
    kubectl = scene.stack.kubectl
    kinds = kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
    written = {
        kind: kubectl("get", kind, "-n", scene.namespace, "-o", "json", "--show-managed-fields")
        for kind in kinds
        if kind != JOBS
    }
    written["the job"] = job_document
    for deployment in (OPERATOR_DEPLOYMENT, GATEWAY_DEPLOYMENT):
        written[f"log of {deployment}"] = kubectl("logs", "-n", SYSTEM_NAMESPACE, f"deployment/{deployment}")
    for pod in scene.trainers(job):
        written[f"log of {pod.metadata.name}"] = kubectl("logs", "-n", scene.namespace, pod.metadata.name)
    (version,) = scene.versions_of(job)
    written |= {path.name: path.read_bytes().decode(errors="replace") for path in version.folder.iterdir()}
    assert {where: word for word in words for where, text in written.items() if word in text} == {}
