"""Volumes and mounts of a trainer's pod: one volume for each claim.

A kubelet never starts a pod with two volumes of one claim, and does not report why. Adapter, model, samples, hub
cache and the user's volumes may share a claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from claas_contract.places import SERVING_CA_FILE
from claas_crds.v1alpha1.tls import CertificatesKeyRef, ServingTls
from claas_crds.v1alpha1.trainer_pod import PassThrough, SecretKeyRef, TrainerPod
from claas_kube.objects.meta import Manifest


@dataclass(frozen=True)
class Mount:
    """A volume and its mount in the trainer."""

    volume: Manifest
    path: str
    read_only: bool = True


def secret_mount(volume: str, reference: SecretKeyRef, file: str) -> Mount:
    """One key of a Secret as a file, the only one in its folder."""
    return secret_files_mount(volume, reference.name, {reference.key: file})


def secret_files_mount(volume: str, secret: str, files: Mapping[str, str]) -> Mount:
    """Keys of a Secret as files, the only ones in their folder."""
    (folder,) = {file.rpartition("/")[0] for file in files.values()}
    items: list[JsonValue] = [{"key": key, "path": file.rpartition("/")[2]} for key, file in files.items()]
    return Mount({"name": volume, "secret": {"secretName": secret, "items": items}}, folder)


def certificates_mount(tls: ServingTls, reference: CertificatesKeyRef) -> Mount:
    """The CA of vLLM's certificate, as the file in the contract."""
    folder, _, file = SERVING_CA_FILE.rpartition("/")
    items: list[JsonValue] = [{"key": reference.key, "path": file}]
    source: Manifest = (
        {"secret": {"secretName": reference.name, "items": items}}
        if tls.ca_secret_ref is not None
        else {"configMap": {"name": reference.name, "items": items}}
    )
    return Mount({"name": "claas-serving-ca", **source}, folder)


def claim_mount(volume: str, claim: str, path: str, *, read_only: bool) -> Mount:
    """A PersistentVolumeClaim."""
    source: Manifest = {"claimName": claim}
    if read_only:
        source["readOnly"] = True
    return Mount({"name": volume, "persistentVolumeClaim": source}, path, read_only)


def pod_volumes(mounts: Sequence[Mount], trainer: TrainerPod) -> tuple[list[JsonValue], list[JsonValue]]:
    """The pod's volumes and the container's mounts: the operator's own, then those of `spec.trainer`.

    Volumes of one claim become one, with the name of the first; read-only mounts stay read-only.
    """
    theirs = [wire(volume) for volume in trainer.volumes]
    merged = _merge([*(mount.volume for mount in mounts), *theirs])
    container: list[JsonValue] = [
        *(_container_mount(merged, str(mount.volume["name"]), mount.path, mount.read_only) for mount in mounts),
        *(_given_mount(merged, wire(mount)) for mount in trainer.volume_mounts),
    ]
    return list(merged.volumes), container


def wire(model: PassThrough) -> Manifest:
    """A passed-through object as in the spec."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass
class _Merged:
    volumes: list[Manifest] = field(default_factory=list)
    name_of: dict[str, str] = field(default_factory=dict)
    """Name of the volume that replaces a given one."""
    read_only: set[str] = field(default_factory=set)
    """Given volumes that were read-only."""


def _merge(given: Iterable[Manifest]) -> _Merged:
    merged = _Merged()
    first_of: dict[str, Manifest] = {}
    for volume in given:
        name = str(volume["name"])
        source = volume.get("persistentVolumeClaim")
        if not isinstance(source, dict):
            merged.name_of[name] = name
            merged.volumes.append(volume)
            continue
        if source.get("readOnly"):
            merged.read_only.add(name)
        claim = str(source.get("claimName"))
        first = first_of.get(claim)
        if first is None:
            first = {**volume, "persistentVolumeClaim": dict(source)}
            first_of[claim] = first
            merged.volumes.append(first)
        elif not source.get("readOnly"):
            # One of its mounts is writable, so the volume can't be read-only.
            first["persistentVolumeClaim"] = {"claimName": claim}
        merged.name_of[name] = str(first["name"])
    return merged


def _container_mount(merged: _Merged, volume: str, path: str, read_only: bool) -> Manifest:
    mount: Manifest = {"name": merged.name_of[volume], "mountPath": path}
    return {**mount, "readOnly": True} if read_only else mount


def _given_mount(merged: _Merged, mount: Manifest) -> Manifest:
    volume = str(mount["name"])
    read_only: Manifest = {"readOnly": True} if volume in merged.read_only else {}
    # An unknown name is passed on; the API server reports it.
    return {**mount, "name": merged.name_of.get(volume, volume), **read_only}
