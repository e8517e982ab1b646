"""Adapters whose servers are on Modal, and what an operator knows of these."""

from __future__ import annotations

from dataclasses import replace

from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.serving import Serving
from claas_crds.v1alpha1.version import AdapterVersion
from claas_kube.objects.resources import AdapterObject
from claas_operator.plan.modal.pointer import ModalServer, ServedPointer, pointer_to, server_of
from claas_operator.plan.modal.state import ModalState
from claas_operator.plan.world import AdapterWorld
from tests.builders.world import adapter, adapter_world, version

ENGINE = EngineSpec.model_validate({"modal": {}})
URL = "https://team--claas-vllm-vllm.modal.example"


def address(number: int, uid: str = "uid-of-tone") -> str:
    """Where a version's files are."""
    return f"modal://claas-adapters/adapters/{uid}/{number}-{number:016x}-a#{number:064x}"


def on_volume(number: int, parent: int | None = None, job: str | None = None) -> AdapterVersion:
    """A version with files on the Volume."""
    return version(number, parent=parent, job=job).model_copy(update={"weights": address(number)})


def modal_adapter(
    *versions: AdapterVersion, served: int | None = None, name: str = "tone", app: str = "claas-vllm"
) -> AdapterObject:
    """A LoraAdapter that a vLLM on Modal serves."""
    found = adapter(name, versions=(), served=served, engine=ENGINE)
    serving = Serving.model_validate({"modalApp": {"app": app}})
    status = found.status.model_copy(
        update={
            "versions": list(versions),
            "latest_version": versions[-1].number if versions else None,
            "engine": EngineName.MODAL if versions else None,
        }
    )
    return found.model_copy(update={"spec": found.spec.model_copy(update={"serving": serving}), "status": status})


def modal_server(of: AdapterObject | None = None) -> ModalServer:
    """The server that answers for it."""
    found = server_of(of or modal_adapter(), ENGINE)
    assert found is not None
    return found


def pointer(to: AdapterVersion, of: AdapterObject | None = None) -> ServedPointer:
    """The pointer to a version."""
    found = pointer_to(of or modal_adapter(to), to)
    assert found is not None
    return found


def knows(**what: object) -> ModalState:
    """What an operator knows."""
    return replace(ModalState(1), **what)  # type: ignore[arg-type]  # (any of its fields)


def modal_world(of: AdapterObject, state: ModalState) -> AdapterWorld:
    """The world of an adapter on Modal."""
    world = adapter_world(of, deployment_found=False)
    return replace(world, engine=EngineName.MODAL, modal=state, modal_server=modal_server(of), wanted_replicas=1)
