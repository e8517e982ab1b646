"""The routes below /v1/lora: adapters as LoraAdapter resources made from a template."""
