"""The Tinker service: one session, a sampler for each checkpoint."""
