"""Servers that speak the wire of services we train with."""
