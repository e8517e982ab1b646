"""Process 1 of a trainer pod: starts the worker, watches it, wakes serving. Never imports PyTorch."""
