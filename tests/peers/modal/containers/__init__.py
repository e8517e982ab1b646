"""Processes that run what was deployed."""
