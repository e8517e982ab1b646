"""Edits an answer on its way to the client."""
