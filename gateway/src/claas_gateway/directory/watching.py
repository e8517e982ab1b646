"""The directory as watches keep it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from claas_crds import GROUP
from claas_crds.v1alpha1.version import AdapterVersion
from claas_gateway.directory.grant import LEASES_SELECTOR, Granted, granted
from claas_gateway.directory.models import Adapter, BaseModel, Server, ServerGroup, Target
from claas_gateway.directory.names import NameTable
from claas_gateway.directory.outside import outside_servers
from claas_gateway.errors import NotFound, Unprocessable
from claas_kube.api import Api
from claas_kube.index.collection import Collection
from claas_kube.index.watches import Watches, decoded_adapter
from claas_kube.listing import PAGE_OF_SMALL, Selection
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.objects.pods import Pod
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.resources import ADAPTERS, DISTILL_JOBS, LEASES, Resource

JOB_LABEL = f"{GROUP}/gateway"
"""On the DistillJobs that a gateway made; its value is `true`."""
_JOBS = Selection(labels=f"{JOB_LABEL}=true")
_LEASES = Selection(labels=LEASES_SELECTOR, page_size=PAGE_OF_SMALL)
_NAMES_TOLD = 50


async def _job(found: Manifest, before: JobObject | None) -> JobObject:
    return JobObject.model_validate(found)


class WatchedDirectory:
    """A Directory. Also `claas_kube.api.Informed`, so that own writes count at once."""

    def __init__(self, api: Api, namespaces: Sequence[str]) -> None:
        """`namespaces`: those to watch; empty: all."""
        self._adapters: Collection[AdapterObject] = Collection(
            decoded_adapter, lambda adapter: [adapter.deployment_name]
        )
        self._jobs: Collection[JobObject] = Collection(_job)
        self._leases: Collection[Granted] = Collection(granted, lambda lease: [lease.deployment])
        self._names = NameTable()
        self._bases_known: dict[str | None, dict[str, list[ServerGroup]]] = {}
        self._listeners: list[Callable[[str, str], None]] = []
        self._watches = Watches(api, self._adapters)
        for namespace in namespaces or (None,):
            self._watches.add(ADAPTERS, self._adapters, namespace)
            self._watches.add(DISTILL_JOBS, self._jobs, namespace, _JOBS)
            self._watches.add(LEASES, self._leases, namespace, _LEASES)
        self._adapters.listen(self._adapter_changed)
        self._jobs.listen(self._job_changed)

    async def ready(self) -> None:
        """Wait until everything has been listed once; raises ApiError if that fails."""
        await self._watches.ready()
        await self._watches.deployments_ready()

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._watches.run()

    async def wrote(self, resource: Resource, found: Manifest) -> None:
        """Take the object in the answer to an own write."""
        if resource is ADAPTERS:
            await self._adapters.take(found, answer=True)
        elif resource is DISTILL_JOBS and _is_ours(found):
            await self._jobs.take(found, answer=True)

    async def refused(self, resource: Resource, namespace: str, name: str) -> None:
        """An own write met an object that had changed or was gone: read it again."""
        await self._watches.refused(resource, namespace, name)

    def resolve(self, model: str | None, namespace: str | None, adapter: str | None = None) -> Target:
        """See Directory."""
        if model is None:
            return self._only(namespace, adapter)
        places = self._names.find(model, namespace, adapter)
        if len(places) > 1:
            told = ", ".join(f"{place}/{name}" for place, name in places[:_NAMES_TOLD])
            raise Unprocessable(f"model: the name stands for several adapters: {told}. Ask by identifier")
        if places:
            found = self.adapter(*places[0])
            if found is not None:
                return found
        if adapter is None:
            groups = self._bases(namespace).get(model)
            if groups:
                return BaseModel(model, self._best(groups))
        raise NotFound(f"model: no adapter or base model has this name; there is {self._told(namespace, adapter)}")

    def adapter(self, namespace: str, name: str) -> Adapter | None:
        """See Directory."""
        found = self._adapters.get(namespace, name)
        return Adapter(found) if found is not None else None

    def adapters(self, namespace: str | None, adapter: str | None = None) -> Sequence[Adapter]:
        """See Directory."""
        seen = [Adapter(each) for each in self._adapters.within(namespace) if adapter in (None, each.metadata.name)]
        return sorted(seen, key=lambda each: (each.lora_id, each.namespace, each.name))

    def base_models(self, namespace: str | None) -> Sequence[str]:
        """See Directory."""
        return sorted(self._bases(namespace))

    def versions(self, adapter: Adapter) -> Sequence[AdapterVersion]:
        """See Directory."""
        return adapter.found.status.versions

    def servers(self, group: ServerGroup) -> Sequence[Server]:
        """See Directory."""
        if group.adapter is not None:
            return outside_servers(self._adapters.get(group.namespace, group.adapter))
        served = self._watches.served(group.namespace, group.deployment)
        if served is None:
            return ()
        asleep = {uid for lease in self._leases.grouped(group.namespace, group.deployment) for uid in lease.pod_uids}
        pods = sorted(served.known_pods(), key=lambda pod: pod.metadata.name)
        return [_server(pod, group, pod.metadata.uid in asleep) for pod in pods if pod.status.pod_ip]

    def job(self, namespace: str, name: str) -> JobObject | None:
        """See Directory."""
        return self._jobs.get(namespace, name)

    def listed(self) -> bool:
        """See Directory."""
        return self._watches.listed

    def listen(self, changed: Callable[[str, str], None]) -> None:
        """See Directory."""
        self._listeners.append(changed)

    def _only(self, namespace: str | None, adapter: str | None) -> Target:
        """What answers to a request that names no model."""
        if namespace is not None and adapter is not None:
            found = self.adapter(namespace, adapter)
            if found is None:
                raise NotFound("model: the adapter that this key is for does not exist")
            return found
        bases = self._bases(namespace)
        if len(bases) == 1:
            [(name, groups)] = bases.items()
            return BaseModel(name, self._best(groups))
        if not bases:
            raise NotFound("model: it is missing, and there is no base model")
        raise Unprocessable(f"model: it is missing, and there is more than one: {self._told(namespace, adapter)}")

    def _bases(self, namespace: str | None) -> dict[str, list[ServerGroup]]:
        """The servers of each base model, in order."""
        known = self._bases_known.get(namespace)
        if known is not None:
            return known
        bases: dict[str, dict[tuple[str, str, str], ServerGroup]] = {}
        for adapter in self.adapters(namespace):
            group = adapter.servers
            at = (group.namespace, group.deployment, group.adapter or "")
            bases.setdefault(adapter.base_model, {}).setdefault(at, group)
        found = {name: [groups[at] for at in sorted(groups)] for name, groups in bases.items()}
        self._bases_known[namespace] = found
        return found

    def _best(self, groups: Sequence[ServerGroup]) -> ServerGroup:
        """The first Deployment with a pod that is ready, else the first."""
        ready = (group for group in groups if any(server.ready for server in self.servers(group)))
        return next(ready, groups[0])

    def _told(self, namespace: str | None, adapter: str | None) -> str:
        names = [each.served_name for each in self.adapters(namespace, adapter)]
        names += self.base_models(namespace) if adapter is None else ()
        more = ["..."] if len(names) > _NAMES_TOLD else []
        return ", ".join([*sorted(set(names))[:_NAMES_TOLD], *more]) or "none"

    def _adapter_changed(
        self, namespace: str, name: str, before: AdapterObject | None, after: AdapterObject | None
    ) -> None:
        self._names.change((namespace, name), before, after)
        self._bases_known.clear()
        self._tell(namespace, name)

    def _job_changed(self, namespace: str, name: str, before: JobObject | None, after: JobObject | None) -> None:
        job = after or before
        if job is not None:
            self._tell(namespace, job.spec.adapter_ref.name)

    def _tell(self, namespace: str, adapter: str) -> None:
        for listener in self._listeners:
            listener(namespace, adapter)


def _is_ours(job: Manifest) -> bool:
    return ObjectMeta.model_validate(job["metadata"]).labels.get(JOB_LABEL) == "true"


def _server(pod: Pod, group: ServerGroup, may_sleep: bool) -> Server:
    address = pod.status.pod_ip
    host = f"[{address}]" if ":" in address else address
    return Server(
        namespace=group.namespace,
        pod=pod.metadata.name,
        uid=pod.metadata.uid,
        url=f"{group.serving.scheme.value}://{host}:{group.serving.port}",
        ready=pod.ready,
        may_sleep=may_sleep,
    )
