"""Self-distillation policy optimisation (SDPO): the step and its loss. Depends on PyTorch only."""
