"""Names of children, places in the queue, the grant's way to a Lease and back, where a pod sees the volume."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_contract.input import VllmPod
from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.lora_adapter import LoraAdapterSpec
from claas_crds.v1alpha1.step import JobPhase
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
from claas_kube.objects.meta import LabelSelector, ObjectMeta
from claas_kube.objects.pods import ClaimReference, Container, ContainerMount, Pod, PodSpec, PodVolume
from claas_kube.objects.resources import JobObject
from claas_kube.objects.serving_lease import GRANT_ANNOTATION, SERVING_LEASE_LABELS, read_pause_grant
from claas_kube.objects.workloads import Lease
from claas_operator.__main__ import LEADER_LEASE
from claas_operator.observe.mounts import mounted_folder
from claas_operator.plan import naming
from claas_operator.plan.queueing import finished, in_queue, queue_key
from claas_operator.plan.serving_lease import (
    Grant,
    ServedName,
    ServedRecord,
    ServingLease,
    Unaccounted,
    adapter_lease_name,
    lease_manifest,
    lease_name,
    new_lease,
    read_lease,
    read_served_name,
    served_name_manifest,
)
from tests.builders.world import DEPLOYMENT, FOLDER, NAMESPACE, adapter, ago, condition, grant, job, metadata

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
SUBDOMAIN = re.compile(rf"{LABEL.pattern}(\.{LABEL.pattern})*")
names = st.from_regex(SUBDOMAIN, fullmatch=True).filter(lambda name: len(name) <= 253)


@given(name=names, uid=st.uuids(), attempt=st.integers(1, 21))
def test_names_of_children_are_labels_of_at_most_63_characters(name: str, uid: object, attempt: int) -> None:
    owner = ObjectMeta(name=name, uid=str(uid))
    for child in (naming.attempt_name(owner, attempt), naming.init_name(owner)):
        assert len(child) <= 57, "a pod's name adds a dash and five characters"
        assert LABEL.fullmatch(child)


def test_names_of_children_differ_by_uid_and_by_attempt() -> None:
    first, second = ObjectMeta(name="step", uid="one"), ObjectMeta(name="step", uid="two")
    made = {naming.attempt_name(owner, attempt) for owner in (first, second) for attempt in (1, 2)}
    assert len({*made, naming.init_name(first)}) == 5


@given(name=names)
def test_the_name_of_a_serving_lease_is_valid_and_never_the_leaders(name: str) -> None:
    assert len(lease_name(name)) <= 253
    assert SUBDOMAIN.fullmatch(lease_name(name))
    assert lease_name(name) != LEADER_LEASE


@given(name=names)
def test_the_name_of_an_adapters_lease_is_valid_and_no_deployments(name: str) -> None:
    assert len(adapter_lease_name(name)) <= 253
    assert SUBDOMAIN.fullmatch(adapter_lease_name(name))
    assert adapter_lease_name(name) != lease_name(name)


def test_long_names_of_deployments_have_leases_of_their_own() -> None:
    assert adapter_lease_name("a" * 252) != adapter_lease_name("a" * 253)
    assert lease_name("a" * 252) != lease_name("a" * 253)
    assert lease_name("operator") != LEADER_LEASE


texts = st.text(max_size=30)
secrets = st.none() | st.builds(SecretKeyRef, name=st.just("secret"), key=st.just("token"))
times = st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC))
vllm_pods = st.builds(VllmPod, name=texts, uid=texts, url=texts, storage_path=st.none() | texts)
identities = st.builds(
    JobIdentity, namespace=st.just(NAMESPACE), name=texts, uid=st.uuids().map(str), attempt=st.integers(1, 21)
)
grants = st.builds(
    Grant,
    jobs=st.lists(identities, min_size=1, max_size=3),
    adapter_name=texts,
    adapter_uid=texts,
    pods=st.lists(vllm_pods, max_size=3),
    control_token=secrets,
    api_key=secrets,
    max_pause_seconds=st.integers(1, 3600),
    granted_at=times,
    asleep_since=st.none() | times,
    stopped_because=st.none() | texts,
)
records = st.builds(
    ServedRecord,
    adapter_name=texts,
    adapter_uid=texts,
    port=st.integers(1, 65535),
    control_token=secrets,
    api_key=secrets,
)
leases = st.builds(
    ServingLease,
    name=st.just(lease_name(DEPLOYMENT)),
    namespace=st.just(NAMESPACE),
    resource_version=st.just("7"),
    deployment=st.just(DEPLOYMENT),
    grant=st.none() | grants,
    served=st.dictionaries(texts, records, max_size=3),
    last_turn=texts,
    unaccounted=st.dictionaries(texts, st.builds(Unaccounted, attempt=st.integers(1, 21)), max_size=2),
)


adapter_leases = st.builds(
    ServingLease,
    name=st.just(adapter_lease_name("tone")),
    namespace=st.just(NAMESPACE),
    resource_version=st.just("7"),
    deployment=st.just(""),
    adapter=st.just("tone"),
    grant=st.none() | grants,
    last_turn=texts,
    last_granted=st.none() | st.datetimes(timezones=st.just(UTC)),
    unaccounted=st.dictionaries(texts, st.builds(Unaccounted, attempt=st.integers(1, 21)), max_size=2),
)


@given(lease=adapter_leases)
def test_gateways_do_not_take_an_adapters_lease_for_one_of_a_deployment(lease: ServingLease) -> None:
    assert lease_manifest(lease)["metadata"]["labels"] != SERVING_LEASE_LABELS  # type: ignore[index,call-overload]


@given(lease=leases | adapter_leases)
def test_a_lease_is_read_as_it_was_written(lease: ServingLease) -> None:
    stored = json.loads(json.dumps(lease_manifest(lease)))
    assert read_lease(Lease.model_validate(stored)) == lease


@given(lease=leases)
def test_what_the_operator_grants_is_what_the_gateway_reads(lease: ServingLease) -> None:
    stored = Lease.model_validate(json.loads(json.dumps(lease_manifest(lease))))
    assert stored.metadata.labels == SERVING_LEASE_LABELS
    read = read_pause_grant(stored)
    if lease.grant is None:
        assert read is None
        return
    assert read is not None
    assert [(pod.name, pod.uid) for pod in read.pods] == [(pod.name, pod.uid) for pod in lease.grant.pods]
    assert [pod.uid for pod in read.may_pause] == [pod.uid for pod in lease.grant.may_pause]
    assert (read.handover, read.asleep_since) == (lease.grant.handover, lease.grant.asleep_since)


@given(
    served=st.builds(ServedName, namespace=st.just(NAMESPACE), deployment=texts, served_name=texts, record=records)
)
def test_a_served_name_is_read_as_it_was_written(served: ServedName) -> None:
    stored = json.loads(json.dumps(served_name_manifest(served.model_copy(update={"resource_version": "7"}))))
    stored["metadata"]["uid"] = "uid"
    assert read_served_name(Lease.model_validate(stored)) == served.model_copy(
        update={"resource_version": "7", "uid": "uid"}
    )


def test_a_lease_that_an_earlier_release_granted_tells_whose_turn_it_was() -> None:
    manifest = lease_manifest(new_lease(NAMESPACE, DEPLOYMENT).model_copy(update={"grant": grant()}))
    stored = Lease.model_validate({**manifest, "metadata": {**manifest["metadata"], "resourceVersion": "1"}})  # type: ignore[dict-item]
    assert read_lease(stored).last_turn == grant().adapter_name


def test_a_lease_without_a_holder_has_no_grant_even_if_an_annotation_was_left() -> None:
    manifest = lease_manifest(new_lease(NAMESPACE, DEPLOYMENT).model_copy(update={"grant": grant()}))
    manifest["spec"] = {"holderIdentity": ""}
    stored = Lease.model_validate({**manifest, "metadata": {**manifest["metadata"], "resourceVersion": "1"}})  # type: ignore[dict-item]
    assert read_lease(stored).grant is None


@pytest.mark.parametrize(
    "left", ['{"job_uid": "u"}', '{"job_uid": 7, "job_name": "a", "attempt": 1}', "[]", "null", "{"]
)
def test_a_damaged_grant_is_an_error_of_its_lease_alone(left: str) -> None:
    """The index keeps a Lease that raises ValueError as unreadable; any other error would end the operator."""
    manifest = lease_manifest(new_lease(NAMESPACE, DEPLOYMENT).model_copy(update={"grant": grant()}))
    stored = json.loads(json.dumps(manifest))
    stored["metadata"] |= {"resourceVersion": "1"}
    stored["metadata"]["annotations"][GRANT_ANNOTATION] = left
    with pytest.raises(ValueError, match=r"Grant|JSON|property name"):
        read_lease(Lease.model_validate(stored))


def test_the_gateway_reads_a_grant_of_release_0_1_0() -> None:
    pods = [{"name": "vllm-0", "uid": "u0", "url": "http://10.0.0.1:8000"}]
    left = {"job_uid": "j", "job_name": "a", "attempt": 1, "pods": pods, "handover": "Sleep"}
    metadata = {"name": "claas-serving-vllm", "annotations": {GRANT_ANNOTATION: json.dumps(left)}}
    read = read_pause_grant(Lease.model_validate({"metadata": metadata, "spec": {"holderIdentity": "j"}}))
    assert read is not None
    assert [pod.uid for pod in read.may_pause] == ["u0"]


def test_jobs_queue_by_creation_and_then_by_name() -> None:
    keys = [queue_key(ago(5), "b"), queue_key(ago(9), "c"), queue_key(ago(5), "a")]
    assert sorted(keys) == [keys[1], keys[2], keys[0]]


@pytest.mark.parametrize(
    ("found", "queued"),
    [
        (job(), True),
        (job(status=DistillJobStatus(phase=JobPhase.QUEUED)), True),
        (job(status=DistillJobStatus(phase=JobPhase.TRAINING)), True),
        (job(status=DistillJobStatus(phase=JobPhase.PENDING)), False),
        (job(status=DistillJobStatus(phase=JobPhase.SWAPPING, produced_version=1)), False),
        (job(suspend=True), False),
        (job(deleted=True), False),
        (job(status=DistillJobStatus(conditions=[condition("Complete", True)])), False),
        (job(status=DistillJobStatus(conditions=[condition("Failed", True)])), False),
    ],
    ids=[
        "new",
        "queued",
        "running",
        "waiting-for-its-adapter",
        "published",
        "suspended",
        "deleted",
        "complete",
        "failed",
    ],
)
def test_a_job_stands_in_the_queue_or_not(found: JobObject, queued: bool) -> None:

    assert in_queue(found) is queued


def test_a_job_is_finished_by_a_condition_that_is_true() -> None:
    assert not finished([condition("Complete", False), condition("Failed", None), condition("Trained", True)])
    assert finished([condition("Failed", True)])


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ({"matchLabels": {"b": "2", "a": "1"}}, "a=1,b=2"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, "a in (1,2)"),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, "a notin (1)"),
        (
            {
                "matchLabels": {"c": "3"},
                "matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "DoesNotExist"}],
            },
            "c=3,a,!b",
        ),
    ],
)
def test_a_selector_is_written_as_a_query_has_it(selector: dict[str, object], text: str) -> None:
    assert LabelSelector.model_validate(selector).text == text


CLAIM = PodVolume(name="v", persistent_volume_claim=ClaimReference(claim_name="adapters"))
OTHER = PodVolume(name="o", persistent_volume_claim=ClaimReference(claim_name="other"))


def mounted(*mounts: ContainerMount, container: str = "vllm") -> Container:
    return Container(name=container, volume_mounts=list(mounts))


MOUNTS: list[tuple[str, list[Container], str | None, str | None]] = [
    ("at its root", [mounted(ContainerMount(name="v", mount_path="/mnt"))], None, f"/mnt/{FOLDER}"),
    ("at a path with a slash", [mounted(ContainerMount(name="v", mount_path="/mnt/"))], None, f"/mnt/{FOLDER}"),
    ("by a folder above", [mounted(ContainerMount(name="v", mount_path="/mnt", sub_path="team"))], None, "/mnt/tone"),
    ("by its own folder", [mounted(ContainerMount(name="v", mount_path="/mnt", sub_path=FOLDER))], None, "/mnt"),
    ("by another folder", [mounted(ContainerMount(name="v", mount_path="/mnt", sub_path="tea"))], None, None),
    (
        "by another folder and then at its root",
        [mounted(ContainerMount(name="v", mount_path="/a", sub_path="x"), ContainerMount(name="v", mount_path="/b"))],
        None,
        f"/b/{FOLDER}",
    ),
    ("not at all", [mounted()], None, None),
    ("with another volume", [mounted(ContainerMount(name="o", mount_path="/mnt"))], None, None),
    (
        "in another container than the first",
        [mounted(container="proxy"), mounted(ContainerMount(name="v", mount_path="/mnt"))],
        None,
        None,
    ),
    (
        "in the container that the adapter names",
        [mounted(container="proxy"), mounted(ContainerMount(name="v", mount_path="/mnt"))],
        "vllm",
        f"/mnt/{FOLDER}",
    ),
    ("in no container", [], "vllm", None),
]


@pytest.mark.parametrize(
    ("containers", "wanted", "path"), [row[1:] for row in MOUNTS], ids=[row[0] for row in MOUNTS]
)
def test_a_pod_sees_the_adapters_folder_when_it_mounts_the_claim(
    containers: list[Container], wanted: str | None, path: str | None
) -> None:
    pod = Pod(metadata=metadata("p"), spec=PodSpec(volumes=[OTHER, CLAIM], containers=containers))
    found = mounted_folder(pod, adapter(serving={"container": wanted} if wanted else None), None)
    assert found.path == path
    assert bool(found.problem) == (path is None)


def test_an_adapters_names_have_defaults_from_its_own() -> None:
    found = adapter()
    assert (found.served_name, found.lora_id, found.storage_path) == ("tone", "team/tone", "team/tone")
    spec = LoraAdapterSpec.model_validate(
        {**found.spec.model_dump(), "lora_id": "me/you", "storage": {"claim_name": "adapters", "path": "here"}}
    )
    other = found.model_copy(update={"spec": spec})
    assert (other.lora_id, other.storage_path) == ("me/you", "here")
