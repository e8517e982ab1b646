"""Hashes by which feedback finds the rollout it is about."""

from __future__ import annotations

import hashlib

from claas_gateway.rollouts.visible import visible_text


def answer_hash(answer: str) -> str:
    """SHA-256 of the visible answer with white space collapsed: chat channels flatten it (CLaaS's key)."""
    return _hash(visible_text(answer))


def prompt_hash(prompt: str) -> str:
    """SHA-256 of the user's text with white space collapsed."""
    return _hash(prompt)


def _hash(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).hexdigest()
