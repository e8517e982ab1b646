"""The worker process: one attempt, from its input to its result."""
