"""The Modal engine: the local engine's step on a GPU of the Modal platform."""
