"""Fused operations for the GPU, with PyTorch equivalents for the CPU."""
