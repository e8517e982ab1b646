"""`python -m tests.cluster COMMAND`: the test cluster's command line."""

import argparse
import sys
import time
from collections.abc import Sequence

from tests.cluster import cluster, light
from tests.cluster.cluster import Report
from tests.cluster.errors import ClusterError
from tests.cluster.images import building as images
from tests.cluster.layout import full_cluster_folders
from tests.cluster.paths import light_root
from tests.cluster.services import binaries
from tests.cluster.services.binaries import Binary
from tests.cluster.services.control_plane import Folders


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "start the cluster, unless it runs"),
        ("down", "stop it and remove what it left"),
        ("status", "say what runs; exit code 1 when something that should does not"),
        ("kubeconfig", "print the path of the kubeconfig"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--light", action="store_true", help="etcd and kube-apiserver only")
        if name == "down":
            command.add_argument("--purge", action="store_true", help="drop loaded images and logs, too")
        if name == "up":
            command.add_argument("--images", action="store_true", help="build and load all images, too")
    commands.add_parser("images", help="build all images and load them")
    loading = commands.add_parser("load-image", help="load images by name, or from archives")
    loading.add_argument("image", nargs="+")
    binary = commands.add_parser("binary", help="print the path of a program, building it if need be")
    binary.add_argument("name", choices=[each.value for each in Binary])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 when something is missing or failed."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "binary":
            wanted = Binary(options.name)
            print(binaries.ensure([wanted])[wanted])
            return 0
        return _light(options.command) if getattr(options, "light", False) else _full(options)
    except ClusterError as error:
        print(f"tests.cluster: {error}", file=sys.stderr)
        return 2


def _report_to_stderr() -> Report:
    began = time.monotonic()

    def report(message: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {message}", file=sys.stderr, flush=True)

    return report


def _full(options: argparse.Namespace) -> int:
    report = _report_to_stderr()
    if options.command == "up":
        print((images.up_with_images if options.images else cluster.up)(report).kubeconfig)
    elif options.command == "images":
        images.build_and_load(report)
    elif options.command == "load-image":
        images.load_named(options.image, report)
    elif options.command == "down":
        cluster.down(purge=options.purge)
        report("down")
    elif options.command == "kubeconfig":
        own = not cluster.uses_current_context()
        print(full_cluster_folders().kubeconfig if own else cluster.check_current_context().kubeconfig)
    elif options.command == "status":
        return _status()
    return 0


def _status() -> int:
    if cluster.uses_current_context():
        print(f"the current context answers ({cluster.check_current_context().kubeconfig})")
        return 0
    found = cluster.status()
    for name in sorted(cluster.PROCESS_NAMES):
        print(f"{name:24} {'running' if name in found.running else 'not running'}")
    print(f"{'node':24} {'ready' if found.node_ready else 'not ready'}")
    return 0 if found.is_up else 1


def _light(command: str) -> int:
    name = light.SHARED_NAME
    kubeconfig = Folders(light_root() / name).kubeconfig
    if command == "up" and not light.is_running(name):
        light.start_light(name)
    if command == "down":
        light.stop_light(name)
    if command == "status":
        running = light.is_running(name)
        print("running" if running else "not running")
        return 0 if running else 1
    if command in ("up", "kubeconfig"):
        print(kubeconfig)
    return 0


if __name__ == "__main__":
    sys.exit(main())
