"""What the demo shows in the end: a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot

from tests.demo.rounds import Round

HEADINGS = (
    "version",
    "loss",
    "compliance",
    "content",
    "gap s",
    "felt s",
    "prepare",
    "sleep",
    "step",
    "wake",
    "publish",
    "swap",
)


def table(rounds: Sequence[Round]) -> str:
    """A line for each version: how it answers, and what its step took, in seconds."""
    lines = ["  ".join(f"{heading:>10}" for heading in HEADINGS)]
    for each in rounds:
        timings = each.job.status.timings if each.job is not None else None
        loss = each.job.status.loss if each.job is not None else None
        cells = [
            str(each.version),
            loss or "-",
            f"{each.score.compliance:.2f}",
            f"{each.score.content:.2f}",
            _seconds(timings.serving_gap if timings else None),
            _seconds(each.felt_gap_seconds),
            *(
                _seconds(getattr(timings, phase) if timings else None)
                for phase in ("prepare", "sleep", "step", "wake", "publish", "swap")
            ),
        ]
        lines.append("  ".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def serving_line(rounds: Sequence[Round], way: str) -> str:
    """What serving noticed of the steps: the longest pause, and the longest time in which no client got a token."""
    trained = [each for each in rounds if each.job is not None]
    paused = max(
        (each.job.status.timings.serving_gap or 0.0 for each in trained if each.job is not None), default=0.0
    )
    felt = max((each.felt_gap_seconds or 0.0 for each in trained), default=0.0)
    pauses = f"serving was paused for {paused:.2f} s at the most" if paused else "serving was never paused"
    return f"steps by {way}: {pauses}; longest gap in which no client got a token: {felt:.2f} s"


def feedback_lines(rounds: Sequence[Round]) -> str:
    """Which version learned from which feedback, as the gateway tells it."""
    lines = []
    for each in rounds:
        if each.feedback:
            more = f" and {len(each.feedback) - 2} more" if len(each.feedback) > 2 else ""
            lines.append(f"version {each.version} learned from {', '.join(each.feedback[:2])}{more}")
        elif each.job is not None:
            lines.append(f"version {each.version} learned from DistillJob {each.job.metadata.name}, by kubectl")
    return "\n".join(lines)


def plot(rounds: Sequence[Round], path: Path) -> None:
    """Compliance of unhinted answers, and the gap in serving, over versions."""
    versions = [each.version for each in rounds]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 6))
    above.plot(versions, [each.score.compliance for each in rounds], marker="o", label="answers without emoji")
    above.plot(versions, [each.score.content for each in rounds], marker=".", linestyle=":", label="right answers")
    above.set_ylim(0, 1.05)
    above.set_ylabel("share of unhinted answers")
    above.set_title("An adapter learns from feedback while it is served")
    above.legend(loc="lower right")
    trained = [each for each in rounds if each.job is not None]
    gaps = [each.job.status.timings.serving_gap or 0.0 for each in trained if each.job is not None]
    below.bar([each.version for each in trained], gaps, label="pause of serving")
    felt = [each.felt_gap_seconds or 0.0 for each in trained]
    below.plot([each.version for each in trained], felt, marker="x", color="black", label="felt by clients")
    below.set_ylabel("seconds")
    below.set_xlabel("version")
    below.legend(loc="upper right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
