"""The Tinker engine: the service computes, and keeps the weights."""
