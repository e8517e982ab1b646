"""Parts of the measurements of the operator at many objects."""
