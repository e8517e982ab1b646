"""Recordings of what releases leave in a cluster and on a volume; later releases must work on with it."""
