"""The API server: one client for it, its objects as typed values, and the ways it can refuse."""
