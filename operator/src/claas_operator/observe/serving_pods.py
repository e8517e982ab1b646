"""Current state of the pods that serve an adapter: their mounts, and the answers of their servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from claas_contract.input import VllmPod
from claas_crds.v1alpha1.engine import EngineName
from claas_kube.objects.pods import Container, Pod
from claas_kube.objects.resources import AdapterObject
from claas_kube.objects.workloads import Deployment
from claas_operator.clients import servers
from claas_operator.clients.reader import Reader
from claas_operator.clients.servers import Credentials
from claas_operator.observe.mounts import MountedFolder, mounted_folder, serving_container
from claas_operator.plan.engine.choice import needs_of
from claas_operator.plan.modal.state import Removal
from claas_operator.plan.server.handover_choice import HandoverChoice, choose_handover
from claas_operator.plan.server.load_failures import LoadFailure
from claas_operator.plan.server.traits import ServerTraits
from claas_operator.plan.server.unready import unready_because
from claas_operator.plan.serving_lease import ServedName, ServingLease
from claas_operator.plan.world import Orphan, RecordedPod, ServerPod

ORPHANS_AT_ONCE = 20
"""How many served names without an adapter one pass deals with."""


async def serving_pods(
    read: Reader,
    adapter: AdapterObject,
    deployment: Deployment | None,
    failures: Mapping[str, LoadFailure],
    *,
    ask: bool,
) -> tuple[ServerPod, ...]:
    """The Deployment's pods, with the state of their servers if `ask`. `failures` are failed loads, by the pod's
    UID."""
    namespace = adapter.metadata.namespace
    spec = adapter.spec.serving
    pods = await read.deployment_pods(namespace, deployment)
    name = serving_container(deployment, adapter)
    container = deployment.spec.template.spec.container(name) if deployment is not None else None
    credentials = None
    if ask and pods:
        credentials = await read.credentials.of(namespace, adapter.control_token, spec.api_key_secret_ref, spec.tls)
    return tuple(
        await asyncio.gather(
            *(
                _serving_pod(
                    pod,
                    f"{spec.scheme}://{{}}:{spec.port}",
                    mounted_folder(pod, adapter, deployment),
                    adapter.served_name,
                    credentials,
                    failures.get(pod.metadata.uid),
                    container,
                )
                for pod in pods
            )
        )
    )


async def _serving_pod(
    pod: Pod,
    address_form: str,
    folder: MountedFolder,
    served_name: str,
    credentials: Credentials | None,
    load_failure: LoadFailure | None,
    container: Container | None,
) -> ServerPod:
    """One pod, whose server's URL is `address_form` with the pod's IP. The server is asked if the pod is ready and
    there are credentials."""
    address = pod.status.pod_ip
    host = f"[{address}]" if ":" in address else address
    url = address_form.format(host) if address else None
    server = None
    if credentials is not None and pod.ready and url is not None:
        server = await servers.ask_state(url, served_name, credentials)
        url += server.root_path
    return ServerPod(
        name=pod.metadata.name,
        uid=pod.metadata.uid,
        ready=pod.ready,
        url=url,
        storage_path=folder.path,
        server=server,
        load_failure=load_failure,
        storage_problem=folder.problem,
        trouble="" if pod.ready else unready_because(pod, container),
    )


def reported(pods: Sequence[ServerPod]) -> tuple[ServerTraits, ...]:
    """The settings that the pods' servers report."""
    return tuple(pod.server.traits for pod in pods if pod.server is not None and pod.server.traits is not None)


def handover_of(
    adapter: AdapterObject | None,
    engine: EngineName,
    deployment: Deployment | None,
    pods: Sequence[ServerPod],
    *,
    asked: bool,
) -> HandoverChoice:
    """The hand-over of a job's next attempt; from the adapter's status if the servers are not asked. `engine`: the
    one of adapters that name none."""
    if adapter is None:
        return HandoverChoice(None, "there is no adapter")
    status = adapter.status
    if not asked and status.handover_message and status.observed_generation == adapter.metadata.generation:
        return HandoverChoice(status.handover, status.handover_message)
    return choose_handover(adapter, needs_of(adapter, engine), deployment, reported(pods))


async def recorded_pods(read: Reader, lease: ServingLease) -> tuple[RecordedPod, ...]:
    """The pods that the holder of a lease may pause."""
    grant = lease.grant
    if grant is None or not grant.may_pause:
        return ()
    credentials = await read.credentials.of(lease.namespace, grant.control_token, grant.api_key, grant.tls)
    return tuple(
        await asyncio.gather(
            *(_recorded_pod(read, lease.namespace, target, credentials) for target in grant.may_pause)
        )
    )


async def _recorded_pod(read: Reader, namespace: str, target: VllmPod, credentials: Credentials) -> RecordedPod:
    pod = await read.pod(namespace, target.name)
    exists = pod is not None and pod.metadata.uid == target.uid and not pod.ended
    server = await servers.ask_state(target.url, None, credentials) if exists else None
    return RecordedPod(target, exists, server)


async def left_behind(read: Reader, lease: ServingLease) -> list[ServedName]:
    """Served names whose adapter is gone, on its way out, or served under another name by now. Nobody knows that of
    an adapter that this release can't read."""
    known = await read.served_names(lease.namespace, lease.deployment)
    if not known:
        return []
    wanted = {
        (adapter.metadata.uid, adapter.served_name)
        for adapter in await read.adapters_of(lease.namespace, lease.deployment)
        if adapter.metadata.deletion_timestamp is None
    }
    lost = [served for served in known if (served.record.adapter_uid, served.served_name) not in wanted]
    unreadable = await read.unreadable_adapters(lease.namespace) if lost else frozenset()
    return [served for served in lost if served.record.adapter_name not in unreadable]


async def orphans(
    read: Reader, lease: ServingLease, now: datetime, removal: Callable[[ServedName], Removal]
) -> tuple[tuple[Orphan, ...], bool]:
    """Some of the served names that are left behind, others at another time; and whether there are more. `removal`:
    of a name's pointer on Modal."""
    lost = await left_behind(read, lease)
    if not lost:
        return (), False
    # Those that can't be taken out of service now keep no other one from it.
    first = int(now.timestamp()) % len(lost) if len(lost) > ORPHANS_AT_ONCE else 0
    chosen = (lost[first:] + lost[:first])[:ORPHANS_AT_ONCE]
    in_pods = [served for served in chosen if served.record.modal is None]
    deployment = await read.deployment(lease.namespace, lease.deployment) if in_pods else None
    pods = await read.deployment_pods(lease.namespace, deployment)
    found = [Orphan(served, await _orphan_pods(read, served, pods)) for served in in_pods]
    found += [Orphan(served, (), removal(served)) for served in chosen if served.record.modal is not None]
    return tuple(found), len(lost) > len(chosen)


async def _orphan_pods(read: Reader, served: ServedName, pods: Sequence[Pod]) -> tuple[ServerPod, ...]:
    record = served.record
    credentials = await read.credentials.of(served.namespace, record.control_token, record.api_key, record.tls)
    return tuple(
        await asyncio.gather(
            *(
                _serving_pod(
                    pod,
                    f"{record.scheme}://{{}}:{record.port}",
                    MountedFolder(None),
                    served.served_name,
                    credentials,
                    None,
                    None,
                )
                for pod in pods
            )
        )
    )
