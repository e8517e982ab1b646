"""The trainer's own forward and backward for decoders of the Llama family. Depends on PyTorch only."""
