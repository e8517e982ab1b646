"""Loads a version under a name of its own and compares its answer with the base model's."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from claas_vllm_client.client import VllmClient
from claas_vllm_client.errors import AdapterNotApplied, ProbedNothing, ProbeFailed
from claas_vllm_client.probing import Finding, ProbeRecord, ProbeSpec, record_of
from claas_vllm_client.wire import LoadOutcome, ProbeAnswer, ServedModel

_ATTEMPTS = 3


@dataclass(frozen=True)
class VersionLoader:
    """Loads a version under an unused name and probes it."""

    client: VllmClient
    target: str
    path: str
    probe: ProbeSpec
    base: str | None
    """Name of the base model; None: no comparison."""
    timeout_seconds: float

    async def applied(self, finding: Callable[[ProbeRecord], Finding]) -> tuple[ProbeAnswer, ProbeRecord | None]:
        """Load and probe; returns the answer of an applied version. Raises AdapterNotApplied and unloads the version
        if it is not applied."""
        answer, record = await self._answered()
        if record is None or finding(record) is not Finding.NOT_APPLIED:
            return answer, record
        await self.client.unload_adapter(self.target)
        answer, record = await self._answered()
        if record is None or finding(record) is not Finding.NOT_APPLIED:
            return answer, record
        await self.client.unload_adapter(self.target)
        raise AdapterNotApplied(
            self.client.base_url,
            f"{self.target} is loaded from {self.path} and not applied: the base answers the probe in its place, also"
            " after it was loaded again; restart the pod, and look in vLLM's log for module names it does not know",
        )

    async def _answered(self) -> tuple[ProbeAnswer, ProbeRecord | None]:
        for attempt in range(_ATTEMPTS):
            outcome = await self.client.load_adapter(self.target, self.path, timeout_seconds=self.timeout_seconds)
            try:
                return await ask(self.client, self.target, self.base, self.probe)
            except ProbedNothing:
                # The companion may just have unloaded this target as the old version of an earlier swap.
                if attempt + 1 == _ATTEMPTS:
                    raise
            except ProbeFailed:
                if outcome is LoadOutcome.LOADED:
                    await self.client.unload_adapter(self.target)
                raise
        raise AssertionError("unreachable: the last attempt returns or raises")


async def ask(
    client: VllmClient, target: str, base: str | None, spec: ProbeSpec
) -> tuple[ProbeAnswer, ProbeRecord | None]:
    """How a version answers the probe, and that beside the base's answer."""
    answer = await _probe(client, target, spec)
    if base is None:
        return answer, None
    beneath = await client.probe(base, spec.prompt, max_tokens=spec.max_tokens, timeout_seconds=spec.timeout_seconds)
    return answer, record_of(spec, answer, beneath)


def base_name(models: tuple[ServedModel, ...]) -> str | None:
    """The name of the base model; None where none is listed."""
    return next((model.id for model in models if model.parent is None), None)


async def _probe(client: VllmClient, model: str, spec: ProbeSpec) -> ProbeAnswer:
    answer = await client.probe(model, spec.prompt, max_tokens=spec.max_tokens, timeout_seconds=spec.timeout_seconds)
    if answer.answered_by != model:
        raise ProbeFailed(client.base_url, f"{model} was asked and {answer.answered_by} answered")
    if not all(math.isfinite(value) for value in answer.logprobs):
        raise ProbeFailed(
            client.base_url, f"{model} answers with log-probabilities that are not finite; its weights are broken"
        )
    return answer


def versions_of(models: Iterable[ServedModel], served_name: str) -> list[str]:
    """The names of loaded adapters that are versions of a served name: `tone@7`, `tone@7-0a1b2c3d`."""
    form = re.compile(rf"{re.escape(served_name)}@[0-9]+(-[0-9a-f]{{8}})?")
    return [model.id for model in models if model.parent is not None and form.fullmatch(model.id)]
