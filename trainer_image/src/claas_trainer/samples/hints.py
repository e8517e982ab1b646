"""The hindsight of one sample: its feedback, and before it the better answer if there is one (arXiv 2601.20802)."""

from __future__ import annotations

from claas_trainer.samples.hindsight import HEADING, hindsight_block


def hint(feedback: str, correction: str = "") -> str:
    """The text that shows feedback and correction to the teacher; one of them may be empty.

    Raises:
        HindsightError: there is neither.
    """
    if not correction:
        return hindsight_block(feedback)
    shown = f"{HEADING}\nA better answer to the message above:\n\n{correction.strip()}\n\n"
    if not feedback:
        return f"{shown}Answer the message above as well as this answer does."
    return shown + hindsight_block(feedback).removeprefix(f"{HEADING}\n")
