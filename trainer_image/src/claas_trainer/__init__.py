"""One training step of one adapter: from a job's input to a published version in service."""
