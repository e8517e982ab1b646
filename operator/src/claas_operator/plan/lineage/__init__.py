"""The lineage of an adapter's versions: which one the next step starts from, and which one should serve."""
