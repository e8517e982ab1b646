"""Kubernetes objects as typed values, with only the fields that are read."""
