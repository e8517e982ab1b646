"""Self-distillation policy optimization (SDPO): the step and its loss, on PyTorch alone."""
