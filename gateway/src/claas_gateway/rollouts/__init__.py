"""Rollouts as texts: the visible part of an answer, and the hashes by which feedback finds it."""
