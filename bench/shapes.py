"""Shapes of models by name; the figures are those of the models' own configurations."""

from claas_trainer.weights.shape import ModelShape, Rope

SHAPES = {
    "qwen3-8b": ModelShape("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, Rope(1e6), qk_norm=True),
    "qwen3-0.6b": ModelShape("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, Rope(1e6), qk_norm=True, tied=True),
    "llama-3.1-8b": ModelShape("llama", 128256, 4096, 14336, 32, 32, 8, 128, Rope(5e5), norm_epsilon=1e-5),
    "small": ModelShape("qwen3", 8192, 512, 1536, 6, 8, 4, 64, Rope(1e6), qk_norm=True, tied=True),
}
