"""A real Kubernetes for the tests: one node from nothing, or an API server alone, or the user's own cluster."""
