"""An app with the names of the vLLM on Modal, whose containers follow pointers and play vLLM."""
