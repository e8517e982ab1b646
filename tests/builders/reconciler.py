"""A reconciler on an API, with an empty companion and the settings of a test."""

from __future__ import annotations

from claas_operator.api import Api
from claas_operator.apply import Applier
from claas_operator.companion import CompanionSource
from claas_operator.events import Recorder
from claas_operator.job_view import JobView
from claas_operator.observe import Observer
from claas_operator.reading import Reader
from claas_operator.reconcile import Reconciler
from claas_operator.settings import Settings

SETTINGS = Settings.from_environment({"CLAAS_TRAINER_IMAGE": "trainer:1"})


def reconciler_of(api: Api) -> Reconciler:
    """It knows of no job before its first resync."""
    read, jobs, companion = Reader(api), JobView(), CompanionSource({})
    applier = Applier(api, read, companion, SETTINGS)
    return Reconciler(api, read, jobs, Observer(read, jobs, companion), applier, Recorder(api, "operator-0"))
