"""Losses over log-probabilities; independent of any model."""
