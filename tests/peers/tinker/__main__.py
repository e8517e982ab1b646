"""`python -m tests.peers.tinker --model DIR --port N`: the peer as a program."""

import argparse
import contextlib
import signal
from pathlib import Path

import torch

from tests.peers.tinker.server import MODEL_NAME, TinkerPeer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.peers.tinker", description="A Tinker service for tests.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model and its tokenizer")
    parser.add_argument("--model-name", default=MODEL_NAME, help="what clients call the base model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key", default=None, help="the only key to accept; all without")
    parser.add_argument("--cycle-seconds", type=float, default=0.0, help="the service's clock cycle")
    parser.add_argument(
        "--session-timeout", type=float, default=None, help="seconds without a heartbeat; none for ever"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TinkerPeer(
        options.model,
        options.port,
        host=options.host,
        model_name=options.model_name,
        api_key=options.api_key,
        cycle_s=options.cycle_seconds,
        session_timeout_s=options.session_timeout,
    ) as peer:
        print(f"listening on {peer.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
