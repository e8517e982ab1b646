"""`python -m tests.demo up|down`: the demo, and its end."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.builders.resources import chosen_handover, lora_adapter
from tests.cluster import cluster
from tests.cluster.errors import ClusterError
from tests.cluster.paths import REPOSITORY_ROOT
from tests.demo.report import plot, serving_line, table
from tests.demo.rounds import Round, judge, never_paused, take_round
from tests.stack import install, resources, serving
from tests.stack.traffic import Traffic

NAMESPACE = "demo"
ADAPTER = "support"
ROUNDS = 6
LEAST_RISE = 0.30
TRAINING = {"learning_rate": 1e-2, "alpha": 0.5, "teacher_top_k": 20, "weight_decay": 0.0}


def main() -> int:
    """Run the demo; 0 when the adapter really learned, no request failed, and only Sleep has paused vLLM."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of feedback (default: {ROUNDS})")
    parser.add_argument("--out", type=Path, default=REPOSITORY_ROOT / "demo-output", help="folder for the plot")
    options = parser.parse_args()
    try:
        if options.command == "down":
            cluster.down()
            return 0
        return demo(options.rounds, options.out)
    except (ClusterError, TimeoutError, RuntimeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2


def demo(rounds: int, out: Path) -> int:
    """Set up, take the rounds, show what came of them."""
    began = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {message}", flush=True)

    say("bringing up the cluster, the images and the tiny model (the first time takes a while)")
    stack = install.bring_up(say)
    fresh(stack)
    say("vLLM starts, the initial version is made")
    serving.create(stack, NAMESPACE)
    stack.kubectl.apply([lora_adapter(ADAPTER, NAMESPACE, training=TRAINING)])
    resources.wait_served(stack, NAMESPACE, ADAPTER, 0, timeout_seconds=600)
    url = resources.vllm_url(stack, NAMESPACE)
    say("version 0 is in service; set-up is done")
    results = [Round(0, judge(url, ADAPTER, 0), None, None)]
    say(f"steps are taken by the hand-over {chosen_handover()}")
    say(f"version 0: {results[0].score.compliance:.0%} of unhinted answers are free of emoji")
    with Traffic(url, ADAPTER) as traffic:
        for number in range(1, rounds + 1):
            results.append(take_round(stack, NAMESPACE, ADAPTER, url, number, traffic.felt, say))
            say(f"version {results[-1].version}: {results[-1].score.compliance:.0%} are free of emoji")
    picture = out / "learning.png"
    plot(results, picture)
    rise = results[-1].score.compliance - results[0].score.compliance
    print(f"\n{table(results)}\n")
    print(f"plot: {picture.relative_to(Path.cwd()) if picture.is_relative_to(Path.cwd()) else picture}")
    print(serving_line(results, chosen_handover()))
    print(f"requests of steady clients: {traffic.felt.answered} answered, {len(traffic.felt.failures)} failed")
    for failure in traffic.felt.failures[:5]:
        print(f"  {failure}")
    print(
        f"compliance rose by {100 * rise:.0f} points in {rounds} rounds; whole demo {time.monotonic() - began:.0f} s"
    )
    print(look_around(stack))
    as_promised = chosen_handover() == "Sleep" or never_paused(results)
    return 0 if rise >= LEAST_RISE and not traffic.felt.failures and as_promised else 1


def fresh(stack: install.Stack) -> None:
    """Remove what an earlier demo left in its namespace, so that it begins with version 0."""
    folder = serving.volume_folder(NAMESPACE)
    serving.remove(stack, serving.Serving(NAMESPACE, "", folder))


def look_around(stack: install.Stack) -> str:
    """Commands to look at what the demo left up."""
    return "\n".join(
        [
            "",
            "The cluster is left up. Look around:",
            f"  export KUBECONFIG={stack.cluster.kubeconfig}",
            f"  kubectl -n {NAMESPACE} get loraadapters,distilljobs -o wide",
            f"  kubectl -n {NAMESPACE} describe distilljob round-1",
            f"  kubectl -n {NAMESPACE} explain loraadapter.spec.serving",
            f"  kubectl -n {install.SYSTEM_NAMESPACE} logs deploy/{install.OPERATOR_DEPLOYMENT}",
            "  make demo-down",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
