"""`python -m tests.peers.modal --folder DIR --port N`: the peer as a program, also in a pod without rights."""

import argparse
import contextlib
import signal
from pathlib import Path

from tests.peers.modal.server import PROXY_KEY, PROXY_SECRET, TOKEN_ID, TOKEN_SECRET, ModalPeer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.peers.modal", description="A Modal workspace for tests.")
    parser.add_argument("--folder", type=Path, required=True, help="keeps Volumes, sources, blobs, containers' logs")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=18000, help="of the API (gRPC); not one that Servers have")
    parser.add_argument("--http-port", type=int, default=18001, help="of blobs, and of orders below /peer")
    parser.add_argument("--advertise", help="address that clients reach it at; --host without")
    parser.add_argument("--server-port", action="append", default=[], metavar="APP/SERVER=PORT", help="of a Server")
    parser.add_argument("--token-id", default=TOKEN_ID)
    parser.add_argument("--token-secret", default=TOKEN_SECRET)
    parser.add_argument("--proxy-key", default=PROXY_KEY)
    parser.add_argument("--proxy-secret", default=PROXY_SECRET)
    parser.add_argument("--environment", action="append", help="a Modal environment; main without")
    parser.add_argument("--idle-seconds", type=float, help="idle window of all containers; each app's own without")
    parser.add_argument(
        "--container-env", action="append", default=[], metavar="NAME=VALUE", help="for all containers' environment"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ports = dict(pair.split("=", 1) for pair in options.server_port)
    with ModalPeer(
        options.folder,
        options.port,
        host=options.host,
        http_port=options.http_port,
        server_ports={server: int(port) for server, port in ports.items()},
        advertise=options.advertise,
        token_id=options.token_id,
        token_secret=options.token_secret,
        proxy_key=options.proxy_key,
        proxy_secret=options.proxy_secret,
        environments=tuple(options.environment or ["main"]),
        idle_s=options.idle_seconds,
        container_environment=dict(pair.split("=", 1) for pair in options.container_env),
    ) as peer:
        print(f"listening on {peer.url} and {peer.http_url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
