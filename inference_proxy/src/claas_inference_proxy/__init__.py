"""The inference proxy: an OpenAI-compatible server that answers by checkpoints in the Tinker service."""
