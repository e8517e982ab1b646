"""Shapes of models by name, and the bases of their ropes; the figures are those of the models' own configurations."""

from claas_trainer.model.shape import ModelShape, Rope

SHAPES = {
    "qwen3-8b": ModelShape("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, Rope.plain(1e6, 128), qk_norm=True),
    "qwen3-0.6b": ModelShape(
        "qwen3", 151936, 1024, 3072, 28, 16, 8, 128, Rope.plain(1e6, 128), qk_norm=True, tied=True
    ),
    "llama-3.1-8b": ModelShape("llama", 128256, 4096, 14336, 32, 32, 8, 128, Rope.plain(5e5, 128), norm_epsilon=1e-5),
    "tiny": ModelShape("qwen3", 1024, 64, 128, 2, 4, 2, 64, Rope.plain(1e6, 64), qk_norm=True, tied=True),
    "small": ModelShape("qwen3", 8192, 512, 1536, 6, 8, 4, 64, Rope.plain(1e6, 64), qk_norm=True, tied=True),
}
THETAS = {"qwen3-8b": 1e6, "qwen3-0.6b": 1e6, "llama-3.1-8b": 5e5, "tiny": 1e6, "small": 1e6}
