"""The trainer: takes one step on an adapter, from a job's input to a published version in service."""
