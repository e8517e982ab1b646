"""Parts of the measurements of one step."""
