"""The table of `serving_gap.py`: what an update took, and what the clients felt of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bench.serving.felt import Felt, Gaps
from bench.serving.updates import Update
from claas_crds.v1alpha1.serving import HandoverKind

MOST_GAP_MS = {HandoverKind.SHARE: 500.0, HandoverKind.SLEEP: 3000.0}
MOST_UPDATE_SECONDS = 3.5
LIMITED = 40

HEADING = (
    "| hand-over | streams | tokens/s before | in the step | kept | after | gaps before, ms (p50 / p99 / max) "
    "| in the step | longest in prepare, step, swap, ms | no token for anybody, ms | failed | step s | update s "
    "| job to answer s |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Row:
    """One update. `update_seconds`: from ready to the new version's first answer; `job_seconds`: from the trainer's
    start to it. `rate_*`: tokens a second. `longest_*`: milliseconds, as `silence`, in which no stream got a token.
    `told`: what its trainer's log told, and how many seconds after its start."""

    way: str
    handover: HandoverKind
    pauses_first: bool
    max_slowdown: int
    streams: int
    rate_before: float
    rate_in_step: float
    rate_after: float
    before: Gaps
    in_step: Gaps
    longest_in_prepare: float
    longest_in_step: float
    longest_in_swap: float
    silence: float
    failed: int
    answered: int
    step_seconds: float
    update_seconds: float
    job_seconds: float
    told: dict[str, float]
    timings: dict[str, object]
    metrics: dict[str, float]

    def line(self) -> str:
        """As a line of the table."""
        longest = f"{self.longest_in_prepare:.0f}, {self.longest_in_step:.0f}, {self.longest_in_swap:.0f}"
        return (
            f"| {self.way} | {self.streams} | {self.rate_before:,.0f} | {self.rate_in_step:,.0f} "
            f"| {100 * self.rate_in_step / self.rate_before:.0f} % | {self.rate_after:,.0f} | {self.before} "
            f"| {self.in_step} | {longest} | {self.silence:.0f} | {self.failed} of {self.answered + self.failed} "
            f"| {self.step_seconds:.2f} | {self.update_seconds:.2f} | {self.job_seconds:.1f} |"
        )

    def shortfalls(self) -> list[str]:
        """What is promised on a GPU and was not kept."""
        beside = self.handover is HandoverKind.SHARE
        most = MOST_GAP_MS[self.handover]
        longest = max(self.longest_in_prepare, self.longest_in_step, self.longest_in_swap)
        kept = 100 * self.rate_in_step / self.rate_before
        found = [
            (self.failed > 0, f"{self.failed} requests failed"),
            (longest > most, f"a gap of {longest:.0f} ms, above {most:.0f}"),
            (
                beside and self.max_slowdown > LIMITED and self.update_seconds > MOST_UPDATE_SECONDS,
                f"an update of {self.update_seconds:.2f} s, above {MOST_UPDATE_SECONDS}",
            ),
            (
                beside and self.max_slowdown <= LIMITED and kept < 100 - self.max_slowdown,
                f"{kept:.0f} % of the tokens a second kept, below {100 - self.max_slowdown}",
            ),
        ]
        return [f"{self.way}, {self.streams} streams: {what}" for missed, what in found if missed]

    def figures(self) -> dict[str, object]:
        """Everything, for a file."""
        return asdict(self)


def row(update: Update, streams: int, felt: Felt, settle_seconds: float) -> Row:
    """What came of an update that has ended."""
    assert update.answered is not None, "it has ended"
    began, stepped, answered = update.began, update.told["stepped"], update.answered
    # The last quarter of the settling is undisturbed, and under way for long enough.
    quiet = update.started - 0.75 * settle_seconds
    result = update.result
    assert result.version is not None, "it succeeded"
    in_step, swap_ends = felt.gaps(began, stepped), answered + 0.5
    return Row(
        update.way.name,
        update.way.handover,
        update.way.pauses_first,
        update.way.max_slowdown,
        streams,
        felt.rate(quiet, update.started),
        felt.rate(began, stepped),
        felt.rate(answered, answered + settle_seconds / 2 - 0.5),
        felt.gaps(quiet, update.started),
        in_step,
        felt.gaps(update.started, began).longest,
        in_step.longest,
        felt.gaps(stepped, swap_ends).longest,
        felt.silence(began, swap_ends),
        len(felt.failures),
        felt.answered,
        result.timings.step or 0.0,
        answered - began,
        answered - update.started,
        {event: round(at - update.started, 3) for event, at in update.told.items()},
        result.timings.model_dump(exclude_none=True),
        result.version.metrics,
    )
