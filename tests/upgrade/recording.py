"""Reads a recording, and puts a recorded cluster into another API server's store as if it had always been there."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import cast

import httpx
from pydantic import JsonValue

from claas_contract.result import PublishedVersion
from claas_kube.objects.meta import Manifest
from tests.simulation.cluster_api import field, text

HERE = Path(__file__).parent
RELEASES = sorted(path.name for path in HERE.glob("v*"))
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
_STORED_UNDER = {
    "LoraAdapter": "claas.dev/loraadapters",
    "DistillJob": "claas.dev/distilljobs",
    "PersistentVolumeClaim": "persistentvolumeclaims",
}


def stored_under(manifest: Manifest) -> str:
    """The key of an object in etcd."""
    kind, namespace = text(manifest, "kind"), text(manifest, "metadata", "namespace")
    folder = _STORED_UNDER.get(kind, f"{kind.lower()}s")
    return "/".join(part for part in ("/registry", folder, namespace, text(manifest, "metadata", "name")) if part)


def restricted(now: JsonValue, recorded: JsonValue) -> JsonValue:
    """A value without the fields that the recorded one lacks: those of later releases."""
    if isinstance(now, dict) and isinstance(recorded, dict):
        return {name: restricted(each, recorded[name]) for name, each in now.items() if name in recorded}
    if isinstance(now, list) and isinstance(recorded, list) and len(now) == len(recorded):
        return [restricted(each, other) for each, other in zip(now, recorded, strict=True)]
    return now


@dataclass(frozen=True)
class Recording:
    """What one release left behind."""

    release: str

    @property
    def folder(self) -> Path:
        """Where it is."""
        return HERE / self.release

    def messages(self, kind: str) -> dict[str, str]:
        """What was said between operator and trainer, by name; `kind` is input, result or progress."""
        found = sorted((self.folder / "messages").glob(f"*.{kind}.json*"))
        return {path.name.split(".")[0]: path.read_text() for path in found}

    @cached_property
    def objects(self) -> list[Manifest]:
        """The recorded objects as they were."""
        return _lines((self.folder / "cluster" / "before.jsonl").read_text())

    def of_kind(self, kind: str) -> dict[str, Manifest]:
        """The recorded objects of a kind, by name."""
        found = [each for each in self.objects if each["kind"] == kind]
        return {text(each, "metadata", "name"): each for each in found}

    def moved(self, namespace: str, port: int, address: Callable[[], str]) -> MovedCluster:
        """The recorded cluster in another namespace, now, with vLLM pods at other addresses."""
        cluster = self.folder / "cluster"
        about = json.loads((cluster / "about.json").read_text())
        later = datetime.now(UTC) - datetime.fromisoformat(about["taken"])
        addresses: dict[str, str] = {}
        for pod in self.of_kind("Pod").values():
            if text(pod, "metadata", "labels", "app"):
                addresses[text(pod, "status", "podIP")] = address()

        def move(recorded: str) -> str:
            def shifted(found: re.Match[str]) -> str:
                digits = "seconds" if found[1] is None else "microseconds"
                moment = datetime.fromisoformat(found[0]) + later
                return moment.isoformat(timespec=digits).replace("+00:00", found[2])

            known = "|".join(re.escape(each) for each in addresses)
            changed = re.sub(rf"\b({known})\b", lambda found: addresses[found[1]], recorded)
            changed = re.sub(rf"\b{about['port']}\b", str(port), changed.replace(about["namespace"], namespace))
            return _MOMENT.sub(shifted, changed)

        def lines(name: str) -> list[Manifest]:
            return _lines(move((cluster / name).read_text()))

        return MovedCluster(
            lines("before.jsonl"),
            lines("trainers-ended.jsonl"),
            _by_folder(lines("volume.jsonl")),
            _by_folder(lines("volume-after.jsonl")),
        )


@dataclass(frozen=True)
class MovedCluster:
    """A recorded cluster that can be put into a store."""

    objects: list[Manifest]
    ended: list[Manifest]
    """Kind, name and status of the batch Jobs and pods whose trainers ended after the recording."""
    volume: Mapping[str, list[PublishedVersion]]
    """The versions of each adapter, by its folder."""
    volume_after: Mapping[str, list[PublishedVersion]]
    """Once those trainers had ended."""

    def put(self, etcd_url: str) -> None:
        """Write the objects into etcd, past the API server: with their UIDs, and whatever it would now refuse."""
        with httpx.Client(base_url=etcd_url, timeout=30) as etcd:
            for each in self.objects:
                value = json.dumps(_stored(each))
                body = {"key": _base64(stored_under(each)), "value": _base64(value)}
                etcd.post("/v3/kv/put", json=body).raise_for_status()


def _stored(manifest: Manifest) -> Manifest:
    plain = field(manifest, "stringData")
    if not isinstance(plain, dict):
        return manifest
    kept = {key: value for key, value in manifest.items() if key != "stringData"}
    return {**kept, "data": {key: _base64(str(value)) for key, value in plain.items()}}


def _base64(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def _lines(content: str) -> list[Manifest]:
    return [cast(Manifest, json.loads(line)) for line in content.splitlines()]


def _by_folder(lines: list[Manifest]) -> dict[str, list[PublishedVersion]]:
    found: dict[str, list[PublishedVersion]] = {}
    for line in lines:
        found.setdefault(text(line, "folder"), []).append(PublishedVersion.model_validate(line["version"]))
    return found
