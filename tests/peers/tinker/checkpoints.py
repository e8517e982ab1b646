"""Saved weights: named, listed, expiring, deleted, exported."""

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from safetensors.torch import save
from tinker.types import Checkpoint as CheckpointMessage
from tinker.types import ParsedCheckpointTinkerPath
from tinker.types.checkpoint import CheckpointType

from tests.peers.tinker.jobs import RequestFailedError
from tests.peers.tinker.model.lora import ALPHA, Lora
from tests.peers.tinker.model.training import Snapshot

FOLDERS: dict[CheckpointType, str] = {
    "training": "weights",
    "sampler": "sampler_weights",
    "external": "external_weights",
}
MIN_TTL, MAX_TTL = 3600, 10 * 366 * 24 * 3600
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,255}")


class RefusedError(Exception):
    """Answer with this HTTP status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Checkpoint:
    path: str
    run: str
    kind: CheckpointType
    base_model: str
    snapshot: Snapshot
    created: datetime
    expires: datetime | None
    user_metadata: dict[str, str] | None

    @property
    def checkpoint_id(self) -> str:
        """`<folder>/<name>`, as the REST routes name it."""
        return "/".join(self.path.split("/")[-2:])

    def message(self) -> CheckpointMessage:
        size = sum(matrix.nbytes for matrix in self.snapshot.lora.parameters())
        return CheckpointMessage(
            checkpoint_id=self.checkpoint_id,
            checkpoint_type=self.kind,
            time=self.created,
            tinker_path=self.path,
            size_bytes=size * (3 if self.kind == "training" else 1),
            user_metadata=self.user_metadata,
            expires_at=self.expires,
        )


class Checkpoints:
    """All checkpoints of the account. Expired ones are gone: `gone_status` is what asking for them answers."""

    def __init__(self, now: Callable[[], datetime], gone_status: int) -> None:
        self.now = now
        self.gone_status = gone_status
        self._all: dict[str, Checkpoint] = {}
        self._files: dict[str, tuple[Checkpoint, datetime]] = {}

    def save(
        self,
        run: str,
        kind: CheckpointType,
        name: str | None,
        base_model: str,
        snapshot: Snapshot,
        *,
        ttl_seconds: int | None,
        user_metadata: dict[str, str] | None = None,
        overwrite: bool = False,
    ) -> Checkpoint:
        """Keep a snapshot under a name of its run; a name that is taken fails, as a user's error."""
        path = f"tinker://{run}/{FOLDERS[kind]}/{name or secrets.token_hex(4)}"
        if path in self._all and not overwrite:
            raise RequestFailedError(f"{path} exists already")
        expires = None if ttl_seconds is None else self.now() + timedelta(seconds=ttl_seconds)
        self._all[path] = Checkpoint(path, run, kind, base_model, snapshot, self.now(), expires, user_metadata)
        return self._all[path]

    def get(self, path: str, *kinds: CheckpointType) -> Checkpoint:
        """The checkpoint at a path, of one of these kinds if any are given."""
        try:
            parsed = ParsedCheckpointTinkerPath.from_tinker_path(path)
        except ValueError as error:
            raise RefusedError(400, str(error)) from None
        if kinds and parsed.checkpoint_type not in kinds:
            raise RefusedError(400, f"{path} is not of the kind {' or '.join(kinds)}")
        found = self._all.get(path)
        if found is None or not self._is_there(found):
            raise RefusedError(self.gone_status, f"{path} does not exist")
        return found

    def list(self, run: str | None = None) -> list[Checkpoint]:
        """Oldest first."""
        return [one for one in self._all.values() if self._is_there(one) and run in (None, one.run)]

    def delete(self, path: str) -> None:
        del self._all[self.get(path).path]

    def expire(self, path: str) -> None:
        """End a checkpoint's time now."""
        self.get(path).expires = self.now()

    def set_ttl(self, path: str, seconds: int | None) -> None:
        check_ttl(seconds)
        self.get(path).expires = None if seconds is None else self.now() + timedelta(seconds=seconds)

    def sign(self, path: str, lifetime: timedelta) -> tuple[str, datetime]:
        """A token that opens the files of an external checkpoint until a time."""
        expires = self.now() + lifetime
        token = secrets.token_urlsafe(12)
        self._files[token] = (self.get(path, "external"), expires)
        return token, expires

    def file(self, token: str, name: str) -> bytes:
        """One exported file, by a token that is still valid."""
        checkpoint, expires = self._files.get(token, (None, None))
        if checkpoint is None or expires is None or self.now() >= expires:
            raise RefusedError(403, "the signature is not or no longer valid")
        files = external_files(checkpoint.base_model, checkpoint.snapshot.lora)
        if name not in files:
            raise RefusedError(404, f"no file {name}")
        return files[name]

    def _is_there(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.expires is None or self.now() < checkpoint.expires


def check_save(name: str | None, ttl_seconds: int | None) -> None:
    """Refuse what can be seen to be wrong before the work is queued."""
    if name is not None and not _NAME.fullmatch(name):
        raise RefusedError(400, "path may hold letters, digits, '.', '_' and '-' only")
    check_ttl(ttl_seconds)


def check_ttl(seconds: int | None) -> None:
    if seconds is not None and not MIN_TTL <= seconds <= MAX_TTL:
        raise RefusedError(400, f"ttl_seconds must lie between {MIN_TTL} and {MAX_TTL}")


def external_files(base_model: str, lora: Lora) -> dict[str, bytes]:
    """The export's files: names as the service's, in which the unembedding is `unembed_tokens`."""
    tensors = {}
    for module, (a, b) in lora.matrices.items():
        name = "model.unembed_tokens" if module == "lm_head" else module
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    config = {"base_model_name_or_path": base_model, "lora_alpha": ALPHA, "r": lora.shape.rank, "peft_type": "LORA"}
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": save(tensors)}
