"""A vLLM on the Modal platform: the app that is deployed, and what keeps the right versions in it."""
