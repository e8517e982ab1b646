"""Observing: the cluster and the servers, read into one frozen value for each pass."""
