"""A vLLM on the Modal platform, which serves adapters of `serving.modalApp`."""
