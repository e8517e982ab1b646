"""Records Events about objects, for `kubectl describe` and `kubectl events`."""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime

from claas_crds import API_VERSION
from claas_kube.api import FIELD_MANAGER, Api
from claas_kube.errors import ApiError
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.resources import EVENTS
from claas_operator.plan.actions import Note

log = logging.getLogger(__name__)

LONGEST_NOTE = 1024
"""The API's limit on an Event's note, in bytes."""


class Recorder:
    """Records Events; a failure is only logged."""

    def __init__(self, api: Api, instance: str) -> None:
        self._api = api
        self._instance = instance

    async def record(self, kind: str, metadata: ObjectMeta, notes: tuple[Note, ...]) -> None:
        """Record an Event from a plan."""
        for note in notes:
            try:
                await self._api.create(EVENTS, metadata.namespace, self._event(kind, metadata, note))
            except ApiError as error:
                log.warning("an Event about %s %s/%s: %s", kind, metadata.namespace, metadata.name, error)

    def _event(self, kind: str, metadata: ObjectMeta, note: Note) -> Manifest:
        now = datetime.now(UTC)
        unique = hashlib.sha256(f"{metadata.uid}{note.reason}{note.message}{now}".encode()).hexdigest()[:16]
        second = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata.name[:200].rstrip('-.')}.{unique}", "namespace": metadata.namespace},
            "eventTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            # `kubectl describe` sorts by this field, which the newer API lacks.
            "lastTimestamp": second,
            "firstTimestamp": second,
            "count": 1,
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": f"claas.dev/{FIELD_MANAGER}",
            "reportingInstance": self._instance[:128],
            "action": "Reconcile",
            "reason": note.reason[:128],
            "message": note.message.encode()[:LONGEST_NOTE].decode(errors="ignore"),
            "type": "Warning" if note.warning else "Normal",
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": kind,
                "name": metadata.name,
                "namespace": metadata.namespace,
                "uid": metadata.uid,
                "resourceVersion": metadata.resource_version,
            },
        }
