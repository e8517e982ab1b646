"""Reading samples as tools export them."""
