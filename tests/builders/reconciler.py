"""A reconciler on an API, with an empty companion and the settings of a test."""

from __future__ import annotations

from claas_kube.api import Api
from claas_operator.act.apply import Applier
from claas_operator.act.events import Recorder
from claas_operator.clients.companion_source import CompanionSource
from claas_operator.clients.reader import Reader
from claas_operator.loop.reconcile import Reconciler
from claas_operator.metrics.counts import Metrics
from claas_operator.observe.job_view import JobView
from claas_operator.observe.worlds import Observer
from claas_operator.settings import Settings

SETTINGS = Settings.from_environment({"CLAAS_TRAINER_IMAGE": "trainer:1"})


def reconciler_of(api: Api) -> Reconciler:
    """It knows of no job before its first resync."""
    read, jobs, companion = Reader(api), JobView(), CompanionSource({})
    metrics = Metrics()
    applier = Applier(api, read, companion, SETTINGS, metrics)
    recorder = Recorder(api, "operator-0")
    return Reconciler(api, read, jobs, Observer(read, jobs, companion), applier, recorder, metrics)
