"""Losses over log-probabilities; nothing here knows a model."""
