"""The Modal platform, as trainer, operator and the vLLM on Modal use it."""
