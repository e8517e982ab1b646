"""Acting: the only writers."""
