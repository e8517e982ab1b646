"""A pod that a kubelet can start, whatever claims, volumes and samples a spec names: each claim is one volume."""

from __future__ import annotations

import re
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from claas_contract import places
from claas_contract.outcome import TrainerCommand
from claas_crds.v1alpha1.distill_job import FileReference, KeyReference, SamplesSource
from claas_crds.v1alpha1.lora_adapter import LoraAdapterSpec
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.objects.resources import AdapterObject
from claas_operator.act.manifests import Owner, child_metadata, common_mounts, serving_mounts, trainer_job
from claas_operator.act.sample_mounts import samples_mounts
from claas_operator.plan.naming import attempt_name
from claas_operator.settings import Settings

SETTINGS = Settings.from_environment({"CLAAS_TRAINER_IMAGE": "trainer:1"})
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
few = settings(max_examples=150, deadline=None)


def pod(adapter: AdapterObject, samples: SamplesSource | None = None, job: str = "step") -> tuple[Manifest, Manifest]:
    """The metadata and spec of a trainer's pod: of a step, or of the initial version without samples."""
    metadata = ObjectMeta(name=job, namespace="team", uid="4f0c24a0-6a8c-4c54-8d4e-0b9e3c1f9a55")
    name = attempt_name(metadata, 3)
    mounts = common_mounts(adapter, SETTINGS, name)
    if samples is not None:
        mounts += [*serving_mounts(adapter), *samples_mounts(samples)]
    owner = Owner("DistillJob" if samples else "LoraAdapter", metadata)
    made = trainer_job(
        TrainerCommand.RUN if samples else TrainerCommand.INIT,
        child_metadata(name, owner, adapter.metadata),
        adapter,
        SETTINGS,
        mounts,
        None,
    )
    template = cast(Manifest, cast(Manifest, made["spec"])["template"])
    return cast(Manifest, made["metadata"]), cast(Manifest, template["spec"])


def adapter_of(source: JsonValue, storage: str = "shared", trainer: JsonValue = None) -> AdapterObject:
    spec: Manifest = {
        "model": {"name": "base", "source": source},
        "serving": {
            "deploymentRef": {"name": "vllm"},
            "controlTokenSecretRef": {"name": "control"},
            "apiKeySecretRef": {"name": "control"},
        },
        "storage": {"claimName": storage},
        "trainer": trainer or {},
    }
    metadata = ObjectMeta(name="tone", namespace="team", uid="b0b4f3d6-3d0e-4b43-9a51-6a0b4d2f1a10")
    return AdapterObject(metadata=metadata, spec=LoraAdapterSpec.model_validate(spec))


def claims(spec: Manifest) -> dict[str, JsonValue]:
    """Sources of the claim volumes, by volume name; fails when a claim stands there twice."""
    found = {
        str(volume["name"]): cast(Manifest, volume["persistentVolumeClaim"])
        for volume in cast("list[Manifest]", spec["volumes"])
        if "persistentVolumeClaim" in volume
    }
    names = [str(source["claimName"]) for source in found.values()]
    assert len(names) == len(set(names)), names
    return dict(found)


def mounts(spec: Manifest) -> dict[str, Manifest]:
    (container,) = cast("list[Manifest]", spec["containers"])
    found = cast("list[Manifest]", container["volumeMounts"])
    assert len(found) == len({str(mount["mountPath"]) for mount in found})
    return {str(mount["mountPath"]): mount for mount in found}


MODEL: Manifest = {"persistentVolumeClaim": {"claimName": "shared", "path": "qwen"}}
HUB: Manifest = {"hub": {"repository": "a/b", "cacheClaimName": "shared", "tokenSecretRef": {"name": "hub"}}}
FILE = SamplesSource(file=FileReference(claim_name="shared", path="a.json"))


def test_model_samples_and_versions_on_one_claim_are_one_volume_with_three_mounts() -> None:
    _, spec = pod(adapter_of(MODEL), FILE)
    assert claims(spec) == {"claas-storage": {"claimName": "shared"}}
    seen = mounts(spec)
    read_only = {
        path: seen[path].get("readOnly", False)
        for path in (places.STORAGE_DIRECTORY, places.MODEL_DIRECTORY, places.SAMPLES_DIRECTORY)
    }
    assert list(read_only.values()) == [False, True, True]
    assert {seen[path]["name"] for path in read_only} == {"claas-storage"}


def test_a_hubs_cache_on_the_adapters_claim_can_be_written() -> None:
    _, spec = pod(adapter_of(HUB), FILE)
    assert claims(spec) == {"claas-storage": {"claimName": "shared"}}
    assert "readOnly" not in mounts(spec)[places.HUB_CACHE_DIRECTORY]


def test_a_claim_that_is_only_read_stays_read_only_as_a_whole() -> None:
    _, spec = pod(adapter_of(MODEL, storage="adapters"), FILE)
    assert claims(spec) == {
        "claas-storage": {"claimName": "adapters"},
        "claas-model": {"claimName": "shared", "readOnly": True},
    }


@pytest.mark.parametrize(("said", "read_only"), [({"readOnly": True}, True), ({}, False)])
def test_a_users_volume_of_the_same_claim_is_mounted_from_the_operators(said: Manifest, read_only: bool) -> None:
    trainer: JsonValue = {
        "volumes": [{"name": "mine", "persistentVolumeClaim": {"claimName": "shared", **said}}],
        "volumeMounts": [{"name": "mine", "mountPath": "/cache", "subPath": "cache"}],
    }
    _, spec = pod(adapter_of(MODEL, storage="adapters", trainer=trainer), FILE)
    assert [name for name in claims(spec) if name == "mine"] == []
    mount = mounts(spec)["/cache"]
    assert (mount["name"], mount["subPath"], mount.get("readOnly", False)) == ("claas-model", "cache", read_only)
    # A volume that is read-only as a whole would keep the user's mount from being written.
    source = cast(Manifest, claims(spec)["claas-model"])
    assert source.get("readOnly", False) is read_only


claim_names = st.sampled_from(["a", "b", "c"])
sources = st.one_of(
    claim_names.map(lambda name: {"persistentVolumeClaim": {"claimName": name}}),
    st.builds(
        lambda cache, token: {
            "hub": {
                "repository": "a/b",
                **({"cacheClaimName": cache} if cache else {}),
                **({"tokenSecretRef": {"name": "control"}} if token else {}),
            }
        },
        st.none() | claim_names,
        st.booleans(),
    ),
)
samples = st.one_of(
    st.none(),
    claim_names.map(lambda name: SamplesSource(file=FileReference(claim_name=name, path="x.json"))),
    st.just(SamplesSource(secret_ref=KeyReference(name="control"))),
    st.just(SamplesSource(config_map_ref=KeyReference(name="control"))),
)
volume_names = st.sampled_from(["x", "y", "z"])
volumes = st.lists(
    st.builds(
        lambda name, claim, read_only: {
            "name": name,
            **(
                {"persistentVolumeClaim": {"claimName": claim, **({"readOnly": True} if read_only else {})}}
                if claim
                else {"emptyDir": {}}
            ),
        },
        volume_names,
        st.none() | claim_names,
        st.booleans(),
    ),
    max_size=3,
    unique_by=lambda volume: str(volume["name"]),
)


@st.composite
def trainers(draw: st.DrawFn) -> Manifest:
    given_volumes = draw(volumes)
    names = [str(volume["name"]) for volume in given_volumes]
    paths = draw(st.lists(st.sampled_from(["/m", "/n", "/o"]), max_size=3 if names else 0, unique=True))
    given_mounts = [{"name": draw(st.sampled_from(names)), "mountPath": path} for path in paths]
    names_given = draw(st.lists(st.sampled_from(["HOME", "A", "CLAAS_DISTILL_EXECUTION_MODE"]), unique=True))
    env = [{"name": name, "value": "x"} for name in names_given]
    return {
        "volumes": cast(JsonValue, given_volumes),
        "volumeMounts": cast(JsonValue, given_mounts),
        "env": cast(JsonValue, env),
    }


@few
@given(
    source=sources,
    storage=claim_names,
    trainer=trainers(),
    taken=samples,
    job=st.from_regex(r"[a-z]([-a-z0-9.]{0,250}[a-z0-9])?", fullmatch=True),
)
def test_every_pod_that_is_made_is_one_that_a_kubelet_can_start(
    source: JsonValue, storage: str, trainer: Manifest, taken: SamplesSource | None, job: str
) -> None:
    metadata, spec = pod(adapter_of(source, storage, trainer), taken, job)
    claims(spec)
    names = [str(volume["name"]) for volume in cast("list[Manifest]", spec["volumes"])]
    assert len(names) == len(set(names))
    for name in (*names, str(metadata["name"])):
        assert len(name) <= 63
        assert LABEL.fullmatch(name)
    for mount in mounts(spec).values():
        assert mount["name"] in names
    for value in cast("dict[str, str]", metadata["labels"]).values():
        assert len(value) <= 63
    (container,) = cast("list[Manifest]", spec["containers"])
    variables = [str(variable["name"]) for variable in cast("list[Manifest]", container["env"])]
    assert len(variables) == len(set(variables))


@few
@given(source=sources, storage=claim_names, trainer=trainers(), taken=samples)
def test_no_merge_makes_what_was_read_only_writable_or_the_other_way_round(
    source: JsonValue, storage: str, trainer: Manifest, taken: SamplesSource | None
) -> None:
    _, spec = pod(adapter_of(source, storage, trainer), taken)
    sources_of = claims(spec)
    given_volumes = {str(each["name"]): each for each in cast("list[Manifest]", trainer["volumes"])}
    seen = mounts(spec)
    for mount in cast("list[Manifest]", trainer["volumeMounts"]):
        claim = cast(Manifest, given_volumes[str(mount["name"])].get("persistentVolumeClaim") or {})
        made = seen[str(mount["mountPath"])]
        behind = cast(Manifest, sources_of.get(str(made["name"])) or {})
        assert behind.get("claimName") == claim.get("claimName")
        effective = bool(made.get("readOnly")) or bool(behind.get("readOnly"))
        assert effective is bool(claim.get("readOnly"))
    assert "readOnly" not in seen[places.STORAGE_DIRECTORY]
    assert "readOnly" not in cast(Manifest, sources_of[str(seen[places.STORAGE_DIRECTORY]["name"])])
