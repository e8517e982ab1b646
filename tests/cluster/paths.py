"""Where the test cluster keeps things, outside the checkout."""

import os
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
BINARY_MODULES = Path(__file__).resolve().parent / "programs"


def cache_root() -> Path:
    """The folder for all that can be made again; `CLAAS_CACHE` overrides the default."""
    override = os.environ.get("CLAAS_CACHE")
    return Path(override) if override else Path.home() / ".cache" / "claas-operator"


def binary_root() -> Path:
    """Built Kubernetes, etcd, Helm and promtool binaries, one folder per module and build recipe."""
    return cache_root() / "bin"


def light_root() -> Path:
    """State of light clusters (etcd and kube-apiserver only), one folder each."""
    return cache_root() / "light"


def cluster_root() -> Path:
    """State of the full cluster."""
    return cache_root() / "cluster"


def image_root() -> Path:
    """What image building keeps: the base image, layouts, records of what was built."""
    return cache_root() / "images"
