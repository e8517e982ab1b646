"""Everything that can go wrong with the test cluster, as one tree.

The command line prints the message of a `ClusterError` and exits with code 2, so a message says what was
wrong, where, and what to do about it.
"""


class ClusterError(Exception):
    """Root of the test cluster's errors."""


class PrerequisiteError(ClusterError):
    """The machine lacks something that the cluster needs: a tool, root, a cgroup mount, a free port."""


class BuildError(ClusterError):
    """A binary or an image could not be built."""


class StartError(ClusterError):
    """A process of the cluster did not start, or did not become ready in time."""


class StopError(ClusterError):
    """Something of the cluster could not be stopped or cleaned up."""


class CommandError(ClusterError):
    """An external command failed."""
