"""API keys: what Secrets hold, what requests present, and sessions that stand for a key."""
