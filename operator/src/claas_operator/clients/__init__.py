"""Clients: what observing and acting read and tell over the network."""
