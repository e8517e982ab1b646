"""Planning: pure functions from an observed world to actions and status."""
