"""Weights out of the service, as a PEFT adapter that a vLLM serves (`export: true`)."""
