"""What the tests of manifests share: objects to start from, kubectl, and requests that show an answer as it is."""

from __future__ import annotations

import copy
import re
import ssl
from dataclasses import dataclass
from typing import cast

import httpx
import yaml
from pydantic import JsonValue

from claas_crds import API_VERSION
from tests.cluster.host import process
from tests.cluster.light import LightCluster
from tests.cluster.paths import REPOSITORY_ROOT
from tests.cluster.services.binaries import Binary, ensure

Object = dict[str, JsonValue]
CRD_FOLDER = REPOSITORY_ROOT / "crds" / "manifests"
CHART = REPOSITORY_ROOT / "helm" / "claas-operator"

ADAPTER: Object = {
    "apiVersion": API_VERSION,
    "kind": "LoraAdapter",
    "metadata": {"name": "tone"},
    "spec": {
        "model": {"name": "base", "source": {"persistentVolumeClaim": {"claimName": "models", "path": "qwen"}}},
        "serving": {"deploymentRef": {"name": "vllm"}},
        "storage": {"claimName": "adapters"},
    },
}
SAMPLE: Object = {"user_prompt": "Which city?", "response": "Paris!", "feedback": "No exclamation marks."}
JOB: Object = {
    "apiVersion": API_VERSION,
    "kind": "DistillJob",
    "metadata": {"name": "step"},
    "spec": {"adapterRef": {"name": "tone"}, "samples": {"inline": [SAMPLE]}},
}


def changed(base: Object, path: str, value: JsonValue) -> Object:
    """A copy with `value` at a dotted path; numbers are list indexes, missing maps are made."""
    result = copy.deepcopy(base)
    node: JsonValue = result
    *parents, last = path.split(".")
    for part in parents:
        node = cast(list[JsonValue], node)[int(part)] if part.isdigit() else cast(Object, node).setdefault(part, {})
    if last.isdigit():
        cast(list[JsonValue], node)[int(last)] = value
    else:
        cast(Object, node)[last] = value
    return result


def without(base: Object, path: str) -> Object:
    """A copy without what is at a dotted path."""
    result = copy.deepcopy(base)
    node: JsonValue = result
    *parents, last = path.split(".")
    for part in parents:
        node = cast(list[JsonValue], node)[int(part)] if part.isdigit() else cast(Object, node)[part]
    del cast(Object, node)[last]
    return result


def at(data: JsonValue, path: str) -> JsonValue:
    """The value at a dotted path."""
    for part in path.split("."):
        data = cast(list[JsonValue], data)[int(part)] if part.isdigit() else cast(Object, data)[part]
    return data


@dataclass(frozen=True)
class Answer:
    """The API server's answer: the object, or a Status whose message is for people."""

    status: int
    body: Object

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


class ApiServer:
    """Plain requests to one namespace; unknown fields are refused, as kubectl has it."""

    def __init__(self, cluster: LightCluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self._kubectl = ensure([Binary.KUBECTL])[Binary.KUBECTL]
        self._http = httpx.Client(
            base_url=cluster.url,
            headers={"Authorization": f"Bearer {cluster.token}"},
            verify=ssl.create_default_context(cafile=str(cluster.authority)),
            timeout=30,
        )

    def close(self) -> None:
        self._http.close()

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Output of kubectl in the namespace; raises CommandError with its error output when it fails."""
        return self.kubectl_anywhere("--namespace", self.namespace, *arguments, stdin=stdin)

    def kubectl_anywhere(self, *arguments: str, stdin: str | None = None) -> str:
        """The same for manifests that name their namespaces themselves."""
        return process.run([self._kubectl, "--kubeconfig", self.cluster.kubeconfig, *arguments], input_text=stdin)

    def create(self, manifest: Object, *, dry_run: bool = False) -> Answer:
        return self._send("POST", self._path(manifest), manifest, dry_run=dry_run)

    def merge(self, manifest: Object, patch: Object, *, subresource: str = "", dry_run: bool = False) -> Answer:
        """Merge-patch the object that `manifest` names."""
        path = f"{self._path(manifest)}/{at(manifest, 'metadata.name')}{subresource}"
        return self._send("PATCH", path, patch, content="application/merge-patch+json", dry_run=dry_run)

    def apply(self, manifest: Object, field_manager: str) -> Answer:
        path = f"{self._path(manifest)}/{at(manifest, 'metadata.name')}"
        return self._send(
            "PATCH", path, manifest, content="application/apply-patch+yaml", field_manager=field_manager
        )

    def review(self, user: str, namespace: str, verb: str, group: str, resource: str) -> bool:
        """Whether the API server would let that user do that (SubjectAccessReview)."""
        attributes: Object = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
        review: Object = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": attributes},
        }
        answer = self._send("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return at(answer.body, "status.allowed") is True

    def _path(self, manifest: Object) -> str:
        return f"/apis/{manifest['apiVersion']}/namespaces/{self.namespace}/{str(manifest['kind']).lower()}s"

    def _send(
        self,
        method: str,
        path: str,
        body: Object,
        *,
        content: str = "application/json",
        dry_run: bool = False,
        field_manager: str = "test",
    ) -> Answer:
        query = {"fieldManager": field_manager, "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        answer = self._http.request(method, path, json=body, params=query, headers={"Content-Type": content})
        return Answer(answer.status_code, cast(Object, answer.json()))


def documents(text: str) -> list[Object]:
    """The YAML documents of a text that are Kubernetes objects."""
    return [
        cast(Object, each) for each in yaml.safe_load_all(text) if isinstance(each, dict) and "apiVersion" in each
    ]


def fenced_manifests(markdown: str) -> list[str]:
    """The ```yaml blocks of a page that hold Kubernetes objects."""
    blocks = re.findall(r"^```ya?ml\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if re.search(r"^apiVersion:", block, re.MULTILINE)]
