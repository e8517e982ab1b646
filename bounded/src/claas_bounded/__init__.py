"""Waits with an end, for whoever calls a service over the network."""
