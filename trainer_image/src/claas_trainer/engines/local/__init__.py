"""The local engine: one step with PyTorch in this pod."""
