"""Version 0 of an adapter, as each engine makes it."""
