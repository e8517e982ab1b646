"""Health, and what this gateway is."""
