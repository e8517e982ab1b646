"""Where a vLLM pod sees the adapter's folder: pods as injectors and templates leave them, mounts of every kind."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from claas_kube.objects.pods import Pod
from claas_kube.objects.workloads import Deployment
from claas_operator.observe.mounts import mounted_folder
from tests.builders.world import DEPLOYMENT, FOLDER, NAMESPACE, adapter

Json = dict[str, JsonValue]


def vllm(*mounts: Json, name: str = "vllm", **rest: JsonValue) -> Json:
    return {"name": name, "volumeMounts": [{"name": "v", **mount} for mount in mounts], **rest}


def proxy(name: str = "proxy") -> Json:
    return {"name": name, "volumeMounts": [{"name": "o", "mountPath": "/mnt"}]}


def pod(*containers: Json, **metadata: JsonValue) -> Pod:
    claims: list[JsonValue] = [
        {"name": "v", "persistentVolumeClaim": {"claimName": "adapters"}},
        {"name": "again", "persistentVolumeClaim": {"claimName": "adapters"}},
        {"name": "o", "persistentVolumeClaim": {"claimName": "other"}},
        {"name": "scratch"},
    ]
    return Pod.model_validate(
        {
            "metadata": {"name": "vllm-7", "namespace": NAMESPACE, "labels": {"team": "blue"}, **metadata},
            "spec": {
                "volumes": claims,
                "containers": list(containers),
                "initContainers": [{"name": "native-sidecar", "restartPolicy": "Always"}],
            },
        }
    )


def deployment(*containers: Json) -> Deployment:
    template: Json = {"spec": {"containers": list(containers)}}
    return Deployment.model_validate({"metadata": {"name": DEPLOYMENT}, "spec": {"template": template}})


AT_ROOT = vllm({"mountPath": "/mnt"})


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ((vllm(),), pod(proxy("linkerd-proxy"), AT_ROOT)),
        ((vllm(), proxy("metrics")), pod(proxy("istio-proxy"), proxy("metrics"), AT_ROOT)),
        ((vllm(name="new"),), pod(AT_ROOT)),
        (
            (vllm(name="new"),),
            pod(proxy("istio-proxy"), AT_ROOT, annotations={"kubectl.kubernetes.io/default-container": "vllm"}),
        ),
    ],
    ids=["a proxy first", "a proxy first and one of its own", "an earlier template", "both"],
)
def test_the_first_container_is_the_templates_and_is_found_in_the_pod_by_its_name(
    template: tuple[Json, ...], found: Pod
) -> None:
    assert mounted_folder(found, adapter(), deployment(*template)).path == f"/mnt/{FOLDER}"


def test_a_container_that_the_spec_names_is_the_one_wherever_it_stands() -> None:
    named = adapter(serving={"container": "engine"})
    there = pod(proxy(), AT_ROOT, vllm({"mountPath": "/engine"}, name="engine"))
    assert mounted_folder(there, named, deployment(vllm())).path == f"/engine/{FOLDER}"
    without = mounted_folder(pod(AT_ROOT), named, deployment(vllm()))
    assert (without.path, without.problem) == (None, "it has no container engine")


NAMESPACED: Json = {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}


@pytest.mark.parametrize(
    ("mount", "env", "path"),
    [
        ({"subPathExpr": "$(POD_NAMESPACE)"}, [NAMESPACED], "/mnt/tone"),
        ({"subPathExpr": "$(POD_NAMESPACE)/$(NAME)"}, [NAMESPACED, {"name": "NAME", "value": "tone"}], "/mnt"),
        ({"subPathExpr": "$(A)/tone"}, [{"name": "T", "value": "te"}, {"name": "A", "value": "$(T)am"}], "/mnt"),
        ({"subPathExpr": "team"}, [], "/mnt/tone"),
        ({"subPathExpr": "$(POD_NAMESPACE)/other"}, [NAMESPACED], None),
        ({"subPathExpr": "$$(POD_NAMESPACE)"}, [NAMESPACED], None),
    ],
)
def test_a_sub_path_expression_is_expanded_as_the_kubelet_does(
    mount: Json, env: list[JsonValue], path: str | None
) -> None:
    seen = pod(vllm({"mountPath": "/mnt", **mount}, env=env))
    assert mounted_folder(seen, adapter(), deployment(vllm())).path == path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "vllm-7"),
        ("metadata.labels['team']", "blue"),
        ("metadata.annotations['absent']", ""),
        ("spec.nodeName", None),
        ("status.podIP", None),
    ],
)
def test_fields_of_the_pod_are_known_as_far_as_they_never_change(path: str, value: str | None) -> None:
    env: list[JsonValue] = [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}]
    seen = pod(vllm({"mountPath": "/mnt", "subPathExpr": "shown-$(X)"}, env=env))
    problem = mounted_folder(seen, adapter(), deployment(vllm())).problem
    assert (f"shows shown-{value} of" if value is not None else "value of X can't be read") in problem


@pytest.mark.parametrize(
    "env",
    [
        [{"name": "WHERE", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
        [{"name": "WHERE", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}],
        [{"name": "S", "valueFrom": {"secretKeyRef": {}}}, {"name": "WHERE", "value": "x-$(S)"}],
        [],
    ],
)
def test_an_expression_that_cannot_be_expanded_is_refused_by_name(env: list[JsonValue]) -> None:
    seen = pod(vllm({"mountPath": "/mnt", "subPathExpr": "$(WHERE)"}, env=env))
    found = mounted_folder(seen, adapter(), deployment(vllm()))
    assert found.path is None
    for named in ("/mnt", "subPathExpr $(WHERE)", "value of WHERE"):
        assert named in found.problem


@pytest.mark.parametrize(
    ("mounts", "path"),
    [
        ([{"mountPath": "/mnt", "subPath": "."}], f"/mnt/{FOLDER}"),
        ([{"mountPath": "/mnt", "subPath": "./team/"}], "/mnt/tone"),
        ([{"mountPath": "mnt/", "subPath": "team//tone"}], "/mnt"),
        ([{"mountPath": "/"}], f"/{FOLDER}"),
        ([{"mountPath": "/", "subPath": FOLDER}], "/"),
        ([{"mountPath": "/mnt", "readOnly": True}], f"/mnt/{FOLDER}"),
        ([{"mountPath": "/a/versions", "subPath": f"{FOLDER}/versions"}], "/a"),
        ([{"mountPath": "/versions", "subPath": f"{FOLDER}/versions"}], "/"),
        ([{"mountPath": "/a", "subPath": f"{FOLDER}/versions"}], None),
        ([{"mountPath": "/a", "subPath": f"{FOLDER}/versions/3"}], None),
        ([{"mountPath": "/a", "subPath": "tea"}, {"mountPath": "/b", "subPath": "team"}], "/b/tone"),
        # A mount below another one wins there.
        ([{"mountPath": "/mnt"}, {"name": "scratch", "mountPath": "/mnt/team"}], None),
        ([{"mountPath": "/mnt"}, {"name": "scratch", "mountPath": f"/mnt/{FOLDER}/versions"}], None),
        ([{"mountPath": "/mnt"}, {"name": "scratch", "mountPath": "/mnt/te"}], f"/mnt/{FOLDER}"),
        ([{"mountPath": "/mnt"}, {"name": "scratch", "mountPath": "/mnt/other"}], f"/mnt/{FOLDER}"),
        ([{"name": "scratch", "mountPath": "/mnt"}, {"mountPath": "/mnt/in"}], f"/mnt/in/{FOLDER}"),
        ([{"mountPath": "/mnt"}, {"name": "again", "mountPath": "/mnt/team", "subPath": "team"}], f"/mnt/{FOLDER}"),
        (
            [
                {"mountPath": "/mnt"},
                {"name": "scratch", "mountPath": "/mnt/team"},
                {"name": "again", "mountPath": "/c"},
            ],
            f"/c/{FOLDER}",
        ),
    ],
)
def test_the_folder_is_seen_where_the_longest_mount_shows_it(mounts: list[Json], path: str | None) -> None:
    found = mounted_folder(pod(vllm(*mounts)), adapter(), deployment(vllm()))
    assert found.path == path
    assert bool(found.problem) == (path is None)
