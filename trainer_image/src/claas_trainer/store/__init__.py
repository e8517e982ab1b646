"""Versions of an adapter on a file system: complete or absent, with lineage and digests."""
