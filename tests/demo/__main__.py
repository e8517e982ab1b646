"""`python -m tests.demo up|down`: the demo, and its end."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.serving import HandoverKind
from tests.builders.resources import HANDOVER_VARIABLE, chosen_handover
from tests.cluster import cluster
from tests.cluster.errors import ClusterError
from tests.cluster.paths import REPOSITORY_ROOT
from tests.demo.course import BY_KUBECTL, Way, by_modal, by_tinker, learn, local
from tests.demo.report import feedback_lines, plot, serving_line, table
from tests.demo.rounds import Round
from tests.stack import install, modal, serving, tinker
from tests.stack.gateway import Gateway, gateway

NAMESPACE = "demo"
ADAPTER = "support"
ROUNDS = 6
ENGINE_VARIABLE = "ENGINE"
"""Names the engine of the demo's adapter; `local` where it names none."""


def main() -> int:
    """Run the demo; 0 when the adapter really learned, no request failed, and only Sleep has paused serving."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of feedback (default: {ROUNDS})")
    parser.add_argument("--out", type=Path, default=REPOSITORY_ROOT / "demo-output", help="folder for the plot")
    options = parser.parse_args()
    try:
        handover = chosen_handover()
    except ValueError as error:
        parser.error(f"{HANDOVER_VARIABLE}: {error}")
    try:
        engine = EngineName(os.environ.get(ENGINE_VARIABLE) or EngineName.LOCAL)
    except ValueError as error:
        parser.error(f"{ENGINE_VARIABLE}: {error}")
    try:
        if options.command == "down":
            cluster.down()
            return 0
        return demo(engine, handover, options.rounds, options.out)
    except (ClusterError, TimeoutError, RuntimeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2


def demo(engine: EngineName, handover: HandoverKind, rounds: int, out: Path) -> int:
    """Set up, take the rounds, show what came of them."""
    began = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {message}", flush=True)

    say("bringing up the cluster, the images and the tiny model (the first time takes a while)")
    stack = install.bring_up(say)
    fresh(stack)
    front, way = set_up(stack, engine, handover, say)
    outcome = learn(stack, front, way, rounds, say)
    picture = out / "learning.png"
    plot(outcome.rounds, picture)
    print(f"\n{table(outcome.rounds)}\n")
    print(f"plot: {picture.relative_to(Path.cwd()) if picture.is_relative_to(Path.cwd()) else picture}")
    print(f"\n{feedback_lines(outcome.rounds)}\n")
    print(f"asked:  {outcome.shown.question}\nbefore: {outcome.shown.before}\nafter:  {outcome.shown.after}\n")
    print(serving_line(outcome.rounds, str(outcome.way)))
    print(f"requests of steady clients: {outcome.felt.answered} answered, {len(outcome.felt.failures)} failed")
    for failure in outcome.felt.failures[:5]:
        print(f"  {failure}")
    taken = time.monotonic() - began
    print(f"compliance rose by {100 * outcome.rise:.0f} points in {rounds} rounds; whole demo {taken:.0f} s")
    shortfalls = outcome.shortfalls()
    for shortfall in shortfalls:
        print(f"not as promised: {shortfall}")
    print(look_around(stack, front, outcome.rounds))
    return 1 if shortfalls else 0


def set_up(
    stack: install.Stack, engine: EngineName, handover: HandoverKind, say: Callable[[str], None]
) -> tuple[Gateway, Way]:
    """Make what the adapter needs in its namespace: a vLLM, or a service that trains and serves."""
    if engine is EngineName.TINKER:
        say("the Tinker service and the inference proxy start, the initial version is made")
        front = gateway(stack, tinker.create(stack, NAMESPACE))
        return front, by_tinker(stack, NAMESPACE, ADAPTER)
    if engine is EngineName.MODAL:
        say("the Modal platform starts, the two apps are deployed, the initial version is made")
        front = gateway(stack, modal.create(stack, NAMESPACE))
        return front, by_modal(stack, NAMESPACE, ADAPTER)
    say("vLLM starts, the initial version is made")
    front = gateway(stack, serving.create(stack, NAMESPACE))
    return front, local(stack, NAMESPACE, ADAPTER, handover)


def fresh(stack: install.Stack) -> None:
    """Remove what an earlier demo left in its namespace, so that it begins with version 0."""
    folder = serving.volume_folder(NAMESPACE)
    serving.remove(stack, serving.Serving(NAMESPACE, "", folder))


def look_around(stack: install.Stack, front: Gateway, rounds: Sequence[Round]) -> str:
    """What to look at of what the demo left up."""
    items = [item for each in rounds for item in each.feedback]
    follow = [f"  curl -H 'Authorization: Bearer {front.key}' {front.url}/v1/feedback/{items[0]}"] if items else []
    return "\n".join(
        [
            "",
            "The cluster is left up. Look around:",
            f"  dashboard: {front.url}/v1/dashboard   key: {front.key}",
            *follow,
            f"  export KUBECONFIG={stack.cluster.kubeconfig}",
            f"  kubectl -n {NAMESPACE} get loraadapters,distilljobs -o wide",
            f"  kubectl -n {NAMESPACE} describe distilljob round-{BY_KUBECTL}",
            f"  kubectl -n {NAMESPACE} explain loraadapter.spec.serving",
            f"  kubectl -n {install.SYSTEM_NAMESPACE} logs deploy/{install.OPERATOR_DEPLOYMENT}",
            "  make demo-down",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
