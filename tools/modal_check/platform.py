"""What costs nothing: tokens, look-ups, a Volume."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import uuid
from pathlib import Path

from claas_modal_client.calls import DeployedClass, preflight, take
from claas_modal_client.connection import ModalAccount, ModalConnection, ModalToken
from claas_modal_client.errors import ModalFault
from claas_modal_client.volume import ModalVolume
from claas_trainer.engines.modal.deployment import CLASS_NAME
from tools.live_check import Findings
from tools.modal_check.subject import Subject, fault_of, soon

BLOCK_BYTES = 8 << 20
"""Of a Volume; the large file is larger."""
UNKNOWN_CALL = "fc-01ARZ3NDEKTSV4RRFFQ69G5FAV"


class Platform:
    """The token, what is deployed, and the Volume of versions."""

    def __init__(self, findings: Findings, subject: Subject, connection: ModalConnection, token: ModalToken) -> None:
        self._findings = findings
        self._subject = subject
        self._connection = connection
        self._token = token

    def _faulted(self, what: str, found: ModalFault | None, expected: ModalFault) -> None:
        told = "no failure" if found is None else found.value
        self._findings.tell(what, told, as_assumed=found is expected, assumed=expected.value)

    async def check_token(self) -> None:
        """A token that is wrong in its last letters."""
        wrong = ModalConnection(ModalAccount(ModalToken(self._token.id, self._token.secret[:-6] + "xxxxxx")))
        deployed = DeployedClass(self._subject.trainer, CLASS_NAME)
        self._faulted(
            "a wrong token", await fault_of(preflight(wrong, deployed, soon())), ModalFault.CREDENTIALS_REFUSED
        )
        await wrong.close()

    async def check_lookups(self) -> None:
        """What is there, and what is not."""
        await preflight(self._connection, DeployedClass(self._subject.trainer, CLASS_NAME), soon())
        self._findings.tell("the trainer's app", f"{self._subject.trainer} has the class {CLASS_NAME}")
        for missing in (
            DeployedClass(f"{self._subject.trainer}-that-is-not-there", CLASS_NAME),
            DeployedClass(self._subject.trainer, "NoSuchClass"),
        ):
            self._faulted(str(missing), await fault_of(preflight(self._connection, missing, soon())),
                          ModalFault.NOT_DEPLOYED)  # fmt: skip
        self._faulted(
            "a call that nobody knows",
            await fault_of(take(self._connection, UNKNOWN_CALL, soon(30))),
            ModalFault.CALL_LOST,
        )

    async def check_volume(self) -> None:
        """Files that are written, written again, read and removed, without a mount."""
        volume = ModalVolume(self._connection, self._subject.volume)
        folder = f"live-check/{uuid.uuid4().hex}"
        pointer, large = f"{folder}/pointer.json", f"{folder}/large.bin"
        try:
            self._faulted(
                "a file that is not there", await fault_of(volume.read(pointer, soon())), ModalFault.FILE_MISSING
            )
            for text in (b"first", b"second"):
                await volume.upload({pointer: text}, soon(), overwrite=True)
                found = await volume.read(pointer, soon())
                self._findings.tell(
                    "a small file, read at once after it was written",
                    found.decode(errors="replace"),
                    as_assumed=found == text,
                    assumed=f"{text.decode()}, or pointers would be followed late",
                )
            content = os.urandom(2 * BLOCK_BYTES + 1)
            began = time.monotonic()
            await volume.upload({large: content}, soon(300))
            with tempfile.TemporaryDirectory() as local:
                digest = await volume.download(large, Path(local) / "large", soon(300), len(content))
            self._findings.tell(
                "a file of three blocks",
                f"there and back in {time.monotonic() - began:.1f} s",
                as_assumed=digest == hashlib.sha256(content).hexdigest(),
                assumed="the same bytes",
            )
            self._faulted(
                "a file that may not be overwritten",
                await fault_of(volume.upload({pointer: b"third"}, soon())),
                ModalFault.REQUEST_REFUSED,
            )
        finally:
            removed = await volume.remove(folder, soon())
        self._findings.tell("removal of a folder", "done" if removed else "nothing was there", as_assumed=removed)
