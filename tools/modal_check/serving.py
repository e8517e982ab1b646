"""What the server's GPU is paid for: its front, and a version that it follows."""

from __future__ import annotations

import asyncio
import time

import httpx

from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.connection import ModalConnection
from claas_modal_client.pointers import Pointer, PointerProbe, Pointers, ReceiptOutcome
from claas_modal_client.servers import server_url
from claas_modal_client.volume import ModalVolume
from claas_trainer.engines.modal.wire import TakenStep
from tools.live_check import Findings
from tools.modal_check.subject import SERVED_NAME, Subject, soon, until

START_SECONDS = 1200.0
FOLLOW_SECONDS = 120.0


class Serving:
    """The deployed server."""

    def __init__(self, findings: Findings, subject: Subject, connection: ModalConnection) -> None:
        self._findings = findings
        self._subject = subject
        self._connection = connection
        self._pointers = Pointers(ModalVolume(connection, subject.volume), subject.server_app)

    async def check(self, step: TakenStep | None, uid: str) -> None:
        """The server's address, its front while no container runs, its lock, and a version that it should serve."""
        subject = self._subject
        url = await server_url(self._connection, subject.server_app, subject.server, soon())
        self._findings.tell("the server's address", url, as_assumed=url.startswith("https://"), assumed="https")
        async with httpx.AsyncClient(base_url=url, timeout=60.0) as stranger:
            status = (await stranger.get("/health")).status_code
        self._findings.tell(
            "a request without the proxy token", f"HTTP {status}", as_assumed=status == 401, assumed="HTTP 401"
        )
        async with httpx.AsyncClient(base_url=url, headers=subject.proxy, timeout=180.0) as client:
            await self._check_start(client)
            locked = (await client.get("/claas/models")).status_code
            self._findings.tell(
                "a control route without the control token",
                f"HTTP {locked}",
                as_assumed=locked in (401, 403),
                assumed="refused",
            )
            if step is not None:
                await self._check_follows(client, step, uid)

    async def clean_up(self) -> None:
        """Take the version out of service."""
        await self._pointers.remove(SERVED_NAME, soon())

    async def _check_start(self, client: httpx.AsyncClient) -> None:
        began = time.monotonic()
        seen: list[str] = []
        while time.monotonic() - began < START_SECONDS:
            try:
                said = f"HTTP {(await client.get('/health')).status_code}"
            except httpx.HTTPError as error:
                said = type(error).__name__
            if said not in seen:
                seen.append(said)
            if said == "HTTP 200":
                self._findings.told("a cold start", f"{time.monotonic() - began:.0f} s; meanwhile {', '.join(seen)}")
                unexpected = set(seen) - {"HTTP 200", "HTTP 503"}
                self._findings.tell(
                    "requests while it starts",
                    ", ".join(sorted(unexpected)) or "wait, or HTTP 503",
                    as_assumed=not unexpected,
                    assumed="wait, or HTTP 503: others would count as failures of the server",
                )
                return
            await asyncio.sleep(2)
        raise RuntimeError(
            f"no container within {START_SECONDS:.0f} s: {', '.join(seen)}; `modal app logs"
            f" {self._subject.server_app}` says why"
        )

    async def _check_follows(self, client: httpx.AsyncClient, step: TakenStep, uid: str) -> None:
        pointer = Pointer(
            served_name=SERVED_NAME,
            adapter_uid=uid,
            version=1,
            weights=VolumeAddress.parse(step.state),
            probe=PointerProbe(prompt="Hello", max_tokens=4),
        )
        began = time.monotonic()
        await self._pointers.write(pointer, soon())
        receipts = await until(lambda: self._pointers.receipts(SERVED_NAME, soon()), FOLLOW_SECONDS)
        outcome = receipts[0].outcome if receipts else None
        self._findings.tell(
            "a version that is pointed to",
            f"{outcome.value if outcome else 'nothing'} after {time.monotonic() - began:.1f} s"
            + (f": {receipts[0].message}" if receipts and receipts[0].message else ""),
            as_assumed=outcome is not None,
            assumed="a receipt",
        )
        if outcome is ReceiptOutcome.SERVED:
            body = {"model": SERVED_NAME, "prompt": "Hello", "max_tokens": 4}
            version = (await client.post("/v1/completions", json=body)).headers.get("x-claas-version", "none")
            expected = f"{SERVED_NAME}@1"
            self._findings.tell(
                "the header that tells the version", version, as_assumed=version == expected, assumed=expected
            )
        await self._pointers.remove(SERVED_NAME, soon())

        async def gone() -> bool:
            models = (await client.get("/v1/models")).json()["data"]
            return SERVED_NAME not in {model["id"] for model in models}

        removed = bool(await until(gone, FOLLOW_SECONDS))
        self._findings.tell(
            "a name without a pointer",
            "out of service" if removed else "still served",
            as_assumed=removed,
            assumed="out of service",
        )
