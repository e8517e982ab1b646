"""Plans for a DistillJob."""
