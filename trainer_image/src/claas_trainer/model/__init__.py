"""The base model's files: configuration, shape, tokenizer, adapter format."""
