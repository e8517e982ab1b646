"""The Modal platform, as far as the operator asks it."""
