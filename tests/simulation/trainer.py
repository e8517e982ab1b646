"""A trainer played by a coroutine: it reads the real input, pauses real servers, and ends as its script says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from claas_contract.input import ServingTarget, TrainerInput
from claas_contract.jobs import JobIdentity
from claas_contract.outcome import ExitCode, FailureReason, exit_code_for
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.samples.checks import InvalidSamplesError, SampleError
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.step import SampleCounts, Timings
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_crds.v1alpha1.version import VersionVerdict
from claas_vllm_client import PauseMode, VllmClient, ensure_awake, pause_serving, put_in_service
from tests.simulation.volume import Volume

KILLED = 137


class Moment(StrEnum):
    """A point of a step at which a script takes effect."""

    PREPARING = "Preparing"
    ASLEEP = "Asleep"
    """In the step: serving sleeps, if it is to."""
    PUBLISHED = "Published"


class Ending(StrEnum):
    """How a trainer ends."""

    SUCCEED = "Succeed"
    FAIL = "Fail"
    """It wakes serving, says why, and exits."""
    DIE = "Die"
    """It is killed: exit code 137, no result, serving as it was."""
    VANISH = "Vanish"
    """Its pod is gone without a status."""
    HANG = "Hang"
    """It stands still, and does not hear that it should end."""
    SILENT = "Silent"
    """It exits with 0 and without a result."""


@dataclass
class Script:
    """What one attempt does. A script with `hold` waits at its moment until it is released."""

    ending: Ending = Ending.SUCCEED
    moment: Moment = Moment.ASLEEP
    reason: FailureReason = FailureReason.INTERNAL
    message: str = "as the script says"
    exit_code: int | None = None
    hold: bool = False
    refused: str = ""
    """Why no pod can be made for it, in the words of a quota; empty: nothing refuses it."""
    invalid_ids: frozenset[str] = frozenset()
    """Identifiers of the samples that it finds invalid."""
    sidecar: bool = False
    """Whether somebody puts a container into its pod that never ends."""
    prepare_seconds: float = 0.1
    step_seconds: float = 0.02
    reached: bool = False
    """Whether the moment was reached."""


@dataclass(frozen=True)
class End:
    """How a trainer's container ended; `exit_code` None: without a trace."""

    exit_code: int | None
    message: str = ""


@dataclass
class Trainer:
    """One attempt. `told` is set when its pod is being deleted."""

    namespace: str
    document: TrainerInput
    script: Script
    volume: Volume
    control_token: str | None
    samples: Sequence[DistillBatchItem] = ()
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> End:
        """Follow the script to the end."""
        folder = self.document.storage_path
        if (modal := self.document.engine.modal) is not None:
            on_volume = f"modal://{modal.volume}/adapters/{self.document.adapter.uid}/{{number}}-a#{'0' * 64}"
            self.volume.elsewhere[self.namespace, folder] = on_volume
        job = next(iter(self.document.jobs), None)
        if job is None:
            return _succeeded(self.volume.initial(self.namespace, folder))
        if self.document.parent is None:
            return self._recover(job)
        await asyncio.sleep(self.script.prepare_seconds)
        early = await self._at(Moment.PREPARING)
        if early is not None:
            return early
        version = self.volume.published_by(self.namespace, folder, job.uid)
        found = version is not None
        if version is None:
            ended = self._refused() or await self._step(job)
            if ended is not None:
                return ended
            learned = [sample.id for sample in self.samples if sample.id]
            version = self.volume.publish(self.namespace, folder, job, self.document.parent, learned)
        ended = await self._at(Moment.PUBLISHED, version)
        if ended is not None:
            return ended
        swapped = await self._swap(version)
        return _succeeded(version, found=found, swapped=swapped)

    def _recover(self, job: JobIdentity) -> End:
        version = self.volume.published_by(self.namespace, self.document.storage_path, job.uid)
        if version is not None:
            return _succeeded(version, found=True)
        return End(ExitCode.SUCCEEDED, TrainerResult(succeeded=True).to_termination_message())

    def _refused(self) -> End | None:
        """The end of an attempt with invalid samples."""
        faults = [
            SampleError(index, "response", "is invalid, as the script says")
            for index, sample in enumerate(self.samples)
            if sample.id in self.script.invalid_ids
        ]
        if not faults:
            return None
        invalid, reason = InvalidSamplesError(faults), FailureReason.INVALID_SAMPLE
        result = TrainerResult(succeeded=False, reason=reason, message=str(invalid), invalid_samples=invalid.named)
        return End(exit_code_for(reason), result.to_termination_message())

    async def _step(self, job: JobIdentity) -> End | None:
        """The pause (hand-over Sleep), what happens in it, and the wake; an End when the script ends there."""
        sleeps = self._serving().handover is HandoverKind.SLEEP
        for pod in self._serving().pods if sleeps else ():
            async with self._client(pod.url) as client:
                if await client.is_sleeping():
                    return _failed(FailureReason.ALREADY_ASLEEP, f"pod {pod.name} is asleep already", None)
                await pause_serving(client, mode=PauseMode.KEEP)
        await asyncio.sleep(self.script.step_seconds)
        ended = await self._at(Moment.ASLEEP)
        if ended is not None and (ended.exit_code is None or ended.exit_code == KILLED):
            return ended
        if sleeps:
            await self._wake()
        return ended

    async def _at(self, moment: Moment, version: PublishedVersion | None = None) -> End | None:
        script = self.script
        if script.moment is not moment:
            return _interrupted() if self.told.is_set() else None
        script.reached = True
        while script.hold and not await self._told_within(0.02):
            continue
        if script.ending is Ending.HANG:
            await asyncio.Event().wait()
        if self.told.is_set():
            return _interrupted()
        match script.ending:
            case Ending.FAIL:
                return _failed(script.reason, script.message, script.exit_code, version)
            case Ending.DIE:
                return End(KILLED)
            case Ending.VANISH:
                return End(None)
            case Ending.SILENT:
                return End(ExitCode.SUCCEEDED)
            case _:
                return None

    async def _told_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.told.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _wake(self) -> None:
        for pod in self._serving().pods:
            async with self._client(pod.url) as client:
                await ensure_awake(client, timeout_seconds=5)

    async def _swap(self, version: PublishedVersion) -> list[str]:
        serving = self._serving()
        swapped = []
        for pod in serving.pods:
            assert pod.storage_path is not None
            async with self._client(pod.url) as client:
                if await client.is_sleeping():
                    continue
                path = f"{pod.storage_path}/versions/{version.number}"
                name, number = serving.served_name, version.number
                await put_in_service(client, served_name=name, version=number, path=path, probe=None)
                swapped.append(pod.name)
        return swapped

    def _serving(self) -> ServingTarget:
        assert self.document.serving is not None
        return self.document.serving

    def _client(self, url: str) -> VllmClient:
        return VllmClient(url, control_token=self.control_token, timeout_seconds=5)


def _succeeded(version: PublishedVersion, *, found: bool = False, swapped: list[str] | None = None) -> End:
    result = TrainerResult(
        succeeded=True,
        version=version,
        already_published=found,
        swapped_pods=swapped or [],
        samples=SampleCounts(total=1, reconstructed=1, response_tokens=4),
        began=datetime.now(UTC) - timedelta(seconds=0.14),
        timings=Timings(prepare=0.1, sleep=0.01, step=0.02, wake=0.01, serving_gap=0.04),
    )
    return End(ExitCode.SUCCEEDED, result.to_termination_message())


def _failed(
    reason: FailureReason, message: str, exit_code: int | None, version: PublishedVersion | None = None
) -> End:
    refused = version if reason is FailureReason.VERSION_REJECTED else None
    if refused is not None:
        refused = refused.model_copy(update={"verdict": VersionVerdict.REJECTED})
    result = TrainerResult(succeeded=False, reason=reason, message=message, version=refused)
    return End(exit_code if exit_code is not None else exit_code_for(reason), result.to_termination_message())


def _interrupted() -> End:
    return _failed(FailureReason.INTERRUPTED, "the pod was asked to end", None)
