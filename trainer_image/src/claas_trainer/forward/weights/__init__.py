"""Sources of base weights, and the layout that all of them share. Depends on PyTorch only."""
