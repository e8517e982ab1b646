"""`python -m claas_operator`: wait for the leader's Lease, then watch and reconcile until it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys

from kubernetes.aio.client import ApiClient
from kubernetes.aio.leaderelection import electionconfig, leaderelection

from claas_kube.api import Api, connected
from claas_kube.errors import ApiError, Conflict
from claas_kube.objects.meta import Manifest
from claas_kube.objects.workloads import Lease
from claas_kube.resources import LEASES
from claas_operator.act.apply import Applier
from claas_operator.act.events import Recorder
from claas_operator.act.proxy import ProxyMaker
from claas_operator.clients.cluster_index import ClusterIndex
from claas_operator.clients.companion_source import CompanionSource
from claas_operator.clients.job_view import JobView
from claas_operator.clients.modal.apps import ModalApps
from claas_operator.clients.modal.service import platform
from claas_operator.clients.proxies import Proxies
from claas_operator.clients.reader import Reader
from claas_operator.clients.steps_elsewhere import StepsElsewhere
from claas_operator.errors import OperatorError, SettingsError
from claas_operator.health import health_endpoint
from claas_operator.keys import Kind
from claas_operator.leader import LeaderLock
from claas_operator.loop.handlers import Wakers
from claas_operator.loop.reconcile import Reconciler
from claas_operator.metrics.counts import Metrics
from claas_operator.metrics.endpoint import metrics_endpoint
from claas_operator.metrics.state import ClusterView, StateCollector
from claas_operator.observe.worlds import Observer
from claas_operator.plan.engine.leases import StepLeases
from claas_operator.settings import Settings
from claas_operator.starting import until_done

log = logging.getLogger("claas_operator")

LEADER_LEASE = "claas-operator"
LEASE_SECONDS = 15
RENEW_SECONDS = 10
RETRY_SECONDS = 2
STOP_SECONDS = 15


async def operate(api: Api, settings: Settings, metrics: Metrics, stop: asyncio.Event) -> None:
    """Watch and reconcile until a signal."""
    companion = CompanionSource.installed()
    jobs = JobView(settings.default_ttl_seconds)
    index = ClusterIndex(api, jobs, settings.watch_namespaces or (None,))
    api.keep_informed(index)
    read = Reader(api, index)
    proxies, step_leases = Proxies(read), StepLeases(settings.engine)
    steps = StepsElsewhere(read, settings.max_concurrent_steps)
    maker = ProxyMaker(api, read, proxies, settings)
    modal = ModalApps(platform(read, settings.modal_server_url))
    applier = Applier(api, read, companion, settings, metrics, maker, steps, modal)
    recorder = Recorder(api, settings.pod_name)
    observer = Observer(read, jobs, companion, proxies, step_leases, steps, modal)
    reconciler = Reconciler(api, read, index, observer, applier, recorder, metrics, step_leases, modal)
    wakers = Wakers(reconciler, index)
    view = ClusterView(lambda: jobs.within(None), wakers.adapters.all, reconciler.failing_loads)
    metrics.lead(StateCollector(view, reconciler.leases.sleepers))
    log.info("leading as %s; engine %s", settings.pod_name, settings.engine)
    async with health_endpoint(settings.health_port) as health, asyncio.TaskGroup() as tasks:
        # A vLLM that sleeps is woken before all jobs are known; whose turn it is, and what is missing, only then.
        reconciler.queue.hold(Kind.ADAPTER, Kind.JOB)
        background = [
            tasks.create_task(index.run(), name="index"),
            tasks.create_task(reconciler.queue.run(), name="work queue"),
        ]
        # Ends the operator if CRDs or permissions are missing for good.
        if await until_done("first look at the cluster", index.ready, stop):
            health.ready = True
            reconciler.queue.hold()
            background.append(tasks.create_task(_resync(reconciler, settings.resync_seconds), name="resync"))
            await stop.wait()
        for task in background:
            task.cancel()
        await modal.close()


async def _resync(reconciler: Reconciler, period_seconds: float) -> None:
    """Wake everything at once, since passes over Leases began before all jobs were known, and then periodically, in
    case an event was lost."""
    while True:
        reconciler.resync()
        await reconciler.leases.wake_elsewhere()
        await asyncio.sleep(period_seconds)


async def lead(api: Api, api_client: ApiClient, settings: Settings, metrics: Metrics) -> int:
    """Operate while holding the leader's Lease; the exit status is 0 after a signal and else 1."""
    told, stop, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def started() -> None:
        try:
            await operate(api, settings, metrics, stop)
        except* Exception as errors:  # noqa: BLE001  (told by the exit status)
            log.error("stopped: %s", "; ".join(f"{type(error).__name__}: {error}" for error in errors.exceptions))
        finally:
            ended.set()

    async def lost() -> None:
        log.error("the leader's Lease was lost")

    config = electionconfig.Config(
        LeaderLock(LEADER_LEASE, settings.pod_namespace, settings.pod_name, api_client),
        lease_duration=LEASE_SECONDS,
        renew_deadline=RENEW_SECONDS,
        retry_period=RETRY_SECONDS,
        onstarted_leading=started,
        onstopped_leading=lost,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    election = leaderelection.LeaderElection(config)

    async def elect() -> None:
        if await until_done("the leader's Lease", lambda: _ensure_lease(api, settings), told):
            await election.run()

    waits = [asyncio.create_task(wait) for wait in (elect(), told.wait(), ended.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    if told.is_set() and election.observed_record is not None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), STOP_SECONDS)
    for wait in waits:
        wait.cancel()
    for result in await asyncio.gather(*waits, return_exceptions=True):
        if isinstance(result, Exception):
            log.error("stopped: %s: %s", type(result).__name__, result)
    await _let_go(api, settings)
    return 0 if told.is_set() else 1


async def _ensure_lease(api: Api, settings: Settings) -> None:
    """Create the leader's Lease without a holder, because the client library's own code for this fails in kubernetes
    37.0."""
    lease: Manifest = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": LEADER_LEASE, "namespace": settings.pod_namespace},
        "spec": {},
    }
    with contextlib.suppress(Conflict):
        await api.create(LEASES, settings.pod_namespace, lease)


async def _let_go(api: Api, settings: Settings) -> None:
    """Release the leader's Lease, so that the next operator need not wait until it expires."""
    namespace = settings.pod_namespace
    try:
        lease = await api.get(LEASES, namespace, LEADER_LEASE)
        if lease is None or Lease.model_validate(lease).spec.holder_identity != settings.pod_name:
            return
        await api.replace(LEASES, namespace, LEADER_LEASE, {**lease, "spec": {}})
    except (ApiError, OperatorError) as error:
        log.warning("the leader's Lease was not freed: %s", error)


async def main() -> int:
    """Run the operator; the exit status."""
    try:
        settings = Settings.from_environment(os.environ)
        CompanionSource.installed()
    except SettingsError as error:
        print(f"claas-operator: {error}", file=sys.stderr)  # noqa: T201  (before logging is set up)
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("aiohttp.access", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    metrics = Metrics()
    async with (
        metrics_endpoint(metrics.registry, settings.metrics_port),
        connected(metrics.api_called) as (api, api_client),
    ):
        return await lead(api, api_client, settings, metrics)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
