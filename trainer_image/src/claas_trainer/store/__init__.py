"""Versions of an adapter on a file system: whole or absent, with lineage and digests."""
