"""How processes that take steps use memory and cores: environment variables, read when libraries are loaded."""

from __future__ import annotations

from collections.abc import Mapping

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
_WAITING = frozenset({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"})
COMPUTE_ENVIRONMENT: Mapping[str, str] = {
    # Fixed-size segments would lose memory to fragmentation, which a step planned to fit can't spare.
    ALLOCATOR: "expandable_segments:True",
    # Spin count of waiting OpenMP threads. By default they spin for milliseconds on cores that other threads may
    # need: on a busy node a step took 15 s instead of 0.4 s.
    "GOMP_SPINCOUNT": "1000",
}


def compute_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables, without those that the environment decides itself."""
    left = dict(COMPUTE_ENVIRONMENT)
    if ALLOCATOR in inherited:
        del left[ALLOCATOR]
    if inherited.keys() & _WAITING:
        del left["GOMP_SPINCOUNT"]
    return left
