"""A Deployment that serves adapters, and its pods: a watch of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from claas_kube.api import Api
from claas_kube.index.collection import Collection
from claas_kube.index.watch import Watch
from claas_kube.listing import PAGE_OF_SMALL, Selection
from claas_kube.objects.meta import Manifest
from claas_kube.objects.pods import Pod
from claas_kube.objects.workloads import Deployment
from claas_kube.resources import DEPLOYMENTS, PODS


async def decoded_pod(found: Manifest, before: Pod | None) -> Pod:
    """A pod's value."""
    return Pod.model_validate(found)


async def _deployment(found: Manifest, before: Deployment | None) -> Deployment:
    return Deployment.model_validate(found)


class ServedDeployment:
    """A Deployment that serves adapters, and its pods."""

    def __init__(self, api: Api, namespace: str, name: str, changed: Callable[[], None]) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._changed = changed
        self._deployments: Collection[Deployment] = Collection(_deployment)
        selection = Selection(fields=f"metadata.name={name}")
        self._watch = Watch(api, DEPLOYMENTS, self._deployments, namespace, selection)
        self._selector = ""
        self._pods: Collection[Pod] = Collection(decoded_pod)
        self._pod_watch: Watch[Pod] | None = None
        self._selected = asyncio.Event()
        self._deployments.listen(self._follow_selector)

    @property
    def listed(self) -> bool:
        """Whether the index knows if the Deployment exists."""
        return self._watch.listed

    @property
    def deployment(self) -> Deployment | None:
        """The Deployment, if it exists."""
        return self._deployments.get(self._namespace, self._name)

    def pods(self, selector: str) -> list[Pod] | None:
        """The pods of a selector; None if they are not in the index."""
        if self._pod_watch is None or not self._pod_watch.listed or selector != self._selector:
            return None
        return list(self._pods.within(self._namespace))

    def known_pods(self) -> list[Pod]:
        """The pods of the Deployment's selector as far as they are in the index."""
        return list(self._pods.within(self._namespace))

    async def ready(self) -> None:
        """Wait for the first list of the Deployment and, if it exists, of its pods; raises ApiError if that fails."""
        await self._watch.ready()
        if self._pod_watch is not None:
            await self._pod_watch.ready()

    def pod(self, name: str) -> Pod | None:
        """The pod with that name, if it is in the index."""
        return self._pods.get(self._namespace, name)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch.run(), name=f"watch Deployment {self._namespace}/{self._name}")
            following: asyncio.Task[None] | None = None
            while True:
                await self._selected.wait()
                self._selected.clear()
                if following is not None:
                    following.cancel()
                following = tasks.create_task(self._pod_watch.run()) if self._pod_watch is not None else None

    async def compare(self) -> None:
        """Check by metadata that no change was missed, and read missed objects. Raises ApiError."""
        for watch in (self._pod_watch, self._watch):
            if watch is not None:
                await watch.compare()

    def _follow_selector(
        self, namespace: str, name: str, before: Deployment | None, after: Deployment | None
    ) -> None:
        selector = after.spec.selector.text if after is not None else ""
        if selector != self._selector:
            self._selector = selector
            self._pods = Collection(decoded_pod)
            self._pods.listen(self._pod_changed)
            selection = Selection(labels=selector, page_size=PAGE_OF_SMALL)
            self._pod_watch = Watch(self._api, PODS, self._pods, namespace, selection) if selector else None
            self._selected.set()
        self._changed()

    def _pod_changed(self, namespace: str, name: str, before: Pod | None, after: Pod | None) -> None:
        if before is None or after is None or _matters(before) != _matters(after):
            self._changed()


def _matters(pod: Pod) -> tuple[object, ...]:
    """The properties of a vLLM pod that decide whether it can serve."""
    return pod.metadata.uid, pod.ready, pod.ended, pod.status.pod_ip, pod.metadata.deletion_timestamp is None
