"""The input documents of the trainer's commands."""

from __future__ import annotations

from claas_contract import places
from claas_contract.input import AdapterIdentity, ModelLocation, ServerTrust, ServingTarget, TrainerInput
from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.tls import ServingTls
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_operator.plan.engine.choice import engine_of
from claas_operator.plan.samples import samples_file
from claas_operator.plan.serving_lease import Grant
from claas_operator.settings import Settings


def init_input(adapter: AdapterObject, settings: Settings) -> TrainerInput:
    """For the initial version."""
    return TrainerInput(
        adapter=AdapterIdentity(
            namespace=adapter.metadata.namespace,
            name=adapter.metadata.name,
            uid=adapter.metadata.uid,
            lora_id=adapter.lora_id,
        ),
        engine=engine_of(adapter, settings.engine),
        model=model_location(adapter),
        lora=adapter.spec.lora,
        storage_path=adapter.storage_path,
    )


def recovery_input(adapter: AdapterObject, settings: Settings, job: JobIdentity) -> TrainerInput:
    """For a search for the version that a job has published."""
    return init_input(adapter, settings).model_copy(update={"jobs": [job]})


def attempt_input(
    adapter: AdapterObject, settings: Settings, job: JobObject, grant: Grant, parent: int
) -> TrainerInput:
    """For an attempt at the jobs that the grant is for, with the samples and settings of this one."""
    return init_input(adapter, settings).model_copy(
        update={
            "jobs": grant.jobs,
            "parent": parent,
            "samples_file": samples_file(job.spec.samples),
            "training": job.spec.training.over(adapter.spec.training),
            "serving": _serving(adapter, grant),
        }
    )


def server_trust(tls: ServingTls | None) -> ServerTrust:
    """How a trainer verifies servers' certificates."""
    if tls is None:
        return ServerTrust()
    return ServerTrust(has_ca=tls.certificates is not None, server_name=tls.server_name)


def _serving(adapter: AdapterObject, grant: Grant) -> ServingTarget:
    spec = adapter.spec.serving
    return ServingTarget(
        served_name=adapter.served_name,
        pods=grant.pods,
        handover=grant.handover,
        max_slowdown_percent=spec.max_slowdown,
        pause=spec.pause,
        drain_timeout_seconds=spec.drain_timeout_seconds,
        max_pause_seconds=spec.max_pause_seconds,
        probe=spec.probe,
        has_control_token=adapter.control_token is not None and not adapter.outside_cluster,
        has_api_key=spec.api_key_secret_ref is not None,
        tls=server_trust(spec.tls),
    )


def model_location(adapter: AdapterObject) -> ModelLocation:
    """The base model as a pod with its volumes sees it."""
    source = adapter.spec.model.source
    if source.persistent_volume_claim is not None:
        path = source.persistent_volume_claim.path
        return ModelLocation(path=f"{places.MODEL_DIRECTORY}/{path}".rstrip("/"))
    assert source.hub is not None
    return ModelLocation(repository=source.hub.repository, revision=source.hub.revision)
