"""The programs of a cluster: where they come from, and how they are started."""
