"""Messages between operator, supervisor and worker."""
