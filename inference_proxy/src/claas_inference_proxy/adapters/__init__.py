"""Versions of the adapter: loaded by name, found on the volume, served from the start."""
