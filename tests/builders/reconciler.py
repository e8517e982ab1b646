"""A reconciler on an API, with an empty companion and the settings of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from claas_kube.api import Api
from claas_operator.act.apply import Applier
from claas_operator.act.events import Recorder
from claas_operator.act.proxy import ProxyMaker
from claas_operator.clients.cluster_index import ClusterIndex
from claas_operator.clients.companion_source import CompanionSource
from claas_operator.clients.job_view import JobView
from claas_operator.clients.modal.apps import ModalApps
from claas_operator.clients.modal.service import ServiceSource, platform
from claas_operator.clients.proxies import Proxies
from claas_operator.clients.reader import Reader
from claas_operator.clients.steps_elsewhere import StepsElsewhere
from claas_operator.loop.handlers import Wakers
from claas_operator.loop.reconcile import Reconciler
from claas_operator.metrics.counts import Metrics
from claas_operator.observe.worlds import Observer
from claas_operator.plan.engine.leases import StepLeases
from claas_operator.settings import Settings

SETTINGS = Settings.from_environment({"CLAAS_TRAINER_IMAGE": "trainer:1"})


def reconciler_of(
    api: Api,
    index: ClusterIndex | None = None,
    settings: Settings = SETTINGS,
    modal: ServiceSource | None = None,
) -> Reconciler:
    """Without an index that runs it asks the server for everything."""
    companion, metrics = CompanionSource({}), Metrics()
    index = index or ClusterIndex(api, JobView(), (None,))
    api.keep_informed(index)
    read = Reader(api, index)
    proxies, step_leases = Proxies(read), StepLeases(settings.engine)
    steps = StepsElsewhere(read, settings.max_concurrent_steps)
    maker = ProxyMaker(api, read, proxies, settings)
    apps = ModalApps(modal or platform(read, None))
    applier = Applier(api, read, companion, settings, metrics, maker, steps, apps)
    observer = Observer(read, index.jobs, companion, proxies, step_leases, steps, apps)
    return Reconciler(api, read, index, observer, applier, Recorder(api, "operator-0"), metrics, step_leases, apps)


@asynccontextmanager
async def watching(
    api: Api, default_ttl_seconds: int | None = None
) -> AsyncIterator[tuple[Reconciler, ClusterIndex]]:
    """A reconciler whose index has seen the cluster and follows it; passes run by themselves."""
    index = ClusterIndex(api, JobView(default_ttl_seconds), (None,))
    reconciler = reconciler_of(api, index)
    Wakers(reconciler, index)
    tasks = [asyncio.create_task(index.run())]
    try:
        await index.ready()
        tasks.append(asyncio.create_task(reconciler.queue.run()))
        yield reconciler, index
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
