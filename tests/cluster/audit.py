"""The operator's requests, as the API server's audit log has them: one line each, of one user, without bodies."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

OPERATOR_USER = "claas-operator"
"""Whose requests are logged."""
READS = frozenset({"get", "list"})
WATCH = "watch"
_LOG_MEGABYTES = 4000


def flags(policy_path: Path, log_path: Path) -> list[str]:
    """Flags of an API server that logs the user's requests; writes the policy."""
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        # A watch is logged when it begins, everything else when it is answered.
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "users": [OPERATOR_USER]}, {"level": "None"}],
    }
    log_path.parent.mkdir(parents=True, exist_ok=True)
    policy_path.write_text(json.dumps(policy))
    return [
        f"--audit-policy-file={policy_path}",
        f"--audit-log-path={log_path}",
        f"--audit-log-maxsize={_LOG_MEGABYTES}",
    ]


@dataclass(frozen=True)
class Request:
    """One request of the user."""

    verb: str
    """As RBAC has it: get, list, watch, create, update, patch, delete."""
    resource: str
    """The plural, with the subresource behind a slash."""
    namespace: str
    name: str
    """Empty where it names no single object."""
    selector: str
    """The label selector's keys, the field selector's keys: which kind of list it is."""
    status: int
    agent: str

    @property
    def reads(self) -> bool:
        """Whether it is a get or a list."""
        return self.verb in READS

    @property
    def writes(self) -> bool:
        """Whether it changes something, or would."""
        return not self.reads and self.verb != WATCH

    @property
    def kind(self) -> str:
        """The verb, the resource, by which keys it selects, and the status of a request that failed."""
        parts = [self.verb, self.resource]
        if self.selector:
            parts.append(f"({self.selector})")
        if self.status >= 300:
            parts.append(str(self.status))
        return " ".join(parts)


@dataclass(frozen=True)
class Calls:
    """How many requests there were."""

    reads: int
    writes: int
    watches: int
    kinds: Counter[str]
    """By verb, resource, selector and, where it is none of success, HTTP status; watches left out."""

    @classmethod
    def of(cls, requests: Iterable[Request]) -> Calls:
        """Count requests."""
        found = list(requests)
        return cls(
            reads=sum(each.reads for each in found),
            writes=sum(each.writes for each in found),
            watches=sum(each.verb == WATCH for each in found),
            kinds=Counter(each.kind for each in found if each.verb != WATCH),
        )

    @property
    def total(self) -> int:
        """Reads and writes."""
        return self.reads + self.writes


class AuditLog:
    """Reads the log as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def new(self) -> Iterator[Request]:
        """The requests that were logged since the last call, or since this was made."""
        if not self._path.exists():
            return
        with self._path.open("rb") as log:
            log.seek(self._offset)
            for line in log:
                if not line.endswith(b"\n"):
                    return  # It is being written.
                self._offset += len(line)
                found = _request(json.loads(line))
                if found is not None:
                    yield found


def _request(event: dict[str, object]) -> Request | None:
    about = event.get("objectRef")
    answer = event.get("responseStatus")
    if not isinstance(about, dict):
        return None  # The server's version, its list of APIs.
    verb = str(event["verb"])
    if verb == WATCH and event["stage"] != "ResponseStarted":
        return None
    resource = "/".join(str(about[part]) for part in ("resource", "subresource") if about.get(part))
    query = parse_qs(urlsplit(str(event["requestURI"])).query)
    return Request(
        verb=verb,
        resource=resource,
        namespace=str(about.get("namespace", "")),
        name=str(about.get("name", "")),
        selector=_selector(query),
        status=int(answer.get("code", 0)) if isinstance(answer, dict) else 0,
        agent=str(event.get("userAgent", "")),
    )


def _selector(query: dict[str, list[str]]) -> str:
    found = [key for kind in ("labelSelector", "fieldSelector") for key in _keys(",".join(query.get(kind, [])))]
    return ",".join([*found, *(each for each in ("limit", "continue") if each in query)])


def _keys(selector: str) -> list[str]:
    """The keys that a selector asks for, without their values."""
    return re.findall(r"(?:^|,)!?([\w./-]+)", re.sub(r"\([^)]*\)", "", selector))
