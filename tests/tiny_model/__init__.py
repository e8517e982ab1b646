"""A tiny model that can be taught, made from a synthetic corpus; `python -m tests.tiny_model` builds it."""
