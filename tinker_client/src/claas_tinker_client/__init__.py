"""The Tinker service, as the trainer and the inference proxy use it."""
