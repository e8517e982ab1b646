"""Three thousand adapters on one Deployment: nothing grows with them but what is one's own."""

from __future__ import annotations

import time
from collections import Counter

from claas_kube.index.collection import Entry
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import AdapterObject
from claas_kube.objects.workloads import Lease
from claas_kube.resources import DEPLOYMENTS, LEASES
from claas_operator.clients.cluster_index import ClusterIndex
from claas_operator.clients.job_view import JobView
from claas_operator.keys import Key, Kind
from claas_operator.plan.serving_lease import (
    ServedName,
    ServedRecord,
    lease_manifest,
    read_served_name,
    served_name_manifest,
)
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.reconciler import reconciler_of
from tests.builders.world import NAMESPACE, adapter, lease

MANY = 3000
GONE = 50
TONE = adapter()
LEASE = Key(Kind.LEASE, NAMESPACE, "claas-serving-vllm")
DEPLOYMENT: Manifest = {
    "metadata": {"name": "vllm"},
    "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "vllm"}}, "template": {"spec": {"containers": []}}},
}


def served_name(number: int, found: Manifest | None) -> ServedName:
    name = f"tone-{number}"
    of = ServedRecord(adapter_name=name, adapter_uid=f"uid-of-{name}", port=8000)
    served = ServedName(namespace=NAMESPACE, deployment="vllm", served_name=name, record=of, resource_version="1")
    return served if found is None else read_served_name(Lease.model_validate(found))


def named(served: ServedName) -> AdapterObject:
    metadata = TONE.metadata.model_copy(update={"name": served.record.adapter_name, "uid": served.record.adapter_uid})
    return TONE.model_copy(update={"metadata": metadata})


async def test_names_that_lost_their_adapter_are_forgotten_some_at_a_time_and_no_others() -> None:
    server = SmallApi()
    async with serving_api(server) as api:
        index = ClusterIndex(api, JobView(), (None,))
        reconciler = reconciler_of(api, index)
        server.put(DEPLOYMENTS, NAMESPACE, DEPLOYMENT)
        await index.leases.take(server.put(LEASES, NAMESPACE, lease_manifest(lease())))
        for number in range(MANY):
            served = served_name(number, None)
            if number < GONE:
                served = served_name(number, server.put(LEASES, NAMESPACE, served_name_manifest(served)))
            index.leases.note((NAMESPACE, served.name), Entry(served.uid, "1", served))
            if number >= GONE:
                index.adapters.note((NAMESPACE, served.served_name), Entry("", "1", named(served)))
        index.complete = True
        server.counted()
        passes, longest = 0, 0.0
        again: float | None = 0.0
        while again is not None:
            began = time.process_time()
            again = await reconciler.reconcile(LEASE)
            longest = max(longest, time.process_time() - began)
            passes += 1
            for path in [path for method, path in server.asked if method == "DELETE"]:
                index.leases.drop(NAMESPACE, path.rsplit("/", 1)[1], str(server.version))
        deleted = Counter(path for method, path in server.asked if method == "DELETE")
        assert len(deleted) == GONE
        assert set(deleted.values()) == {1}
        assert len(index.served_names(NAMESPACE, "vllm")) == MANY - GONE
        assert passes == 3
        # What a pass keeps from all others, the waking of serving too. About 0.05 s where nothing else runs.
        assert longest < 1
