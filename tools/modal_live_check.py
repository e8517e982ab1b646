"""Checks what the Modal engine assumes of the platform, once, and prints what differs.

The two apps must be deployed (docs/modal.md). The token comes from MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, the proxy
token from MODAL_PROXY_KEY and MODAL_PROXY_SECRET. Nothing is asked before the cost was told and agreed to. What is
written to the Volume is removed in the end. Exit code: 0 as assumed, 1 something differs, 2 the check could not be
made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence

import httpx

from claas_modal_client.connection import TOKEN_ID, TOKEN_SECRET, ModalAccount, ModalConnection, ModalToken
from claas_modal_client.errors import ModalServiceError
from claas_trainer.engines.modal.wire import TakenStep, WireError
from claas_trainer.errors import TrainerError
from tools.live_check import Findings
from tools.modal_check.platform import Platform
from tools.modal_check.serving import Serving
from tools.modal_check.steps import Steps
from tools.modal_check.subject import Subject

ERRORS = (
    ModalServiceError,
    TrainerError,
    TimeoutError,
    WireError,
    httpx.HTTPError,
    OSError,
    ValueError,
    RuntimeError,
)
COSTS = {
    "steps": "one start of the trainer, one small step, and the trainer's idle window",
    "serving": "one start of the vLLM, a few tokens, and its idle window",
}
"""What is paid for, by part."""


async def check(subject: Subject, token: ModalToken, parts: Sequence[str]) -> Findings:
    """Make the checks that cost nothing, and those of these parts."""
    findings = Findings(ERRORS)
    connection = ModalConnection(ModalAccount(token, subject.environment))
    platform = Platform(findings, subject, connection, token)
    steps, serving = Steps(findings, subject, connection), Serving(findings, subject, connection)
    taken: TakenStep | None = None
    try:
        with findings.part("token"):
            await platform.check_token()
        with findings.part("look-ups"):
            await platform.check_lookups()
        with findings.part("Volume"):
            await platform.check_volume()
        if "steps" in parts:
            with findings.part("steps"):
                taken = await steps.check()
        if "serving" in parts:
            with findings.part("serving"):
                await serving.check(taken, steps.uid)
    finally:
        with findings.part("clean-up"):
            if "serving" in parts:
                await serving.clean_up()
            if "steps" in parts:
                await steps.clean_up()
            await connection.close()
    return findings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/modal-live-check", description=__doc__)
    parser.add_argument("model", help="the base model that the apps were deployed with, such as Qwen/Qwen3-8B")
    parser.add_argument("--environment", help="Modal environment, if not the workspace's default")
    parser.add_argument("--trainer-app", default="claas-trainer")
    parser.add_argument("--server-app", default="claas-vllm")
    parser.add_argument("--server", default="Vllm")
    parser.add_argument("--volume", default="claas-adapters")
    parser.add_argument("--weights-volume", default="claas-weights")
    parser.add_argument("--without", action="append", choices=list(COSTS), default=[], help="a part to leave out")
    parser.add_argument("--yes", action="store_true", help="do not ask whether the cost is all right")
    return parser


def main(arguments: Sequence[str] | None = None, ask: Callable[[str], str] = input) -> int:
    """Run the check."""
    options = _parser().parse_args(arguments)
    parts = [part for part in COSTS if part not in options.without]
    needed = ["MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"]
    needed += ["MODAL_PROXY_KEY", "MODAL_PROXY_SECRET"] if "serving" in parts else []
    if missing := [name for name in needed if not os.environ.get(name)]:
        print(f"modal-live-check: set {' and '.join(missing)}", file=sys.stderr)
        return 2
    print("The check is paid for as: " + ("; ".join(COSTS[part] for part in parts) or "nothing") + ".")
    if not options.yes and ask("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        return 2
    parts_of_token = {TOKEN_ID: os.environ["MODAL_TOKEN_ID"], TOKEN_SECRET: os.environ["MODAL_TOKEN_SECRET"]}
    try:
        token = ModalToken.parse({name: text.encode() for name, text in parts_of_token.items()}, "the environment")
    except ModalServiceError as error:
        print(f"modal-live-check: {error.message}", file=sys.stderr)
        return 2
    subject = Subject(
        options.environment,
        options.trainer_app,
        options.server_app,
        options.server,
        options.volume,
        options.weights_volume,
        options.model,
        {
            "Modal-Key": os.environ.get("MODAL_PROXY_KEY", ""),
            "Modal-Secret": os.environ.get("MODAL_PROXY_SECRET", ""),
        },
    )
    return asyncio.run(check(subject, token, parts)).conclude()


if __name__ == "__main__":
    sys.exit(main())
