"""The tables, how records lie in them, and how they came to be."""
