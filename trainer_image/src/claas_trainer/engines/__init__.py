"""Engines, which compute steps. `base` is the interface, `registry` maps names to engines."""
