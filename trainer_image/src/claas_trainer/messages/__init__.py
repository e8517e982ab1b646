"""Messages between operator, supervisor and worker: what they say. `transport` says how they travel."""
