"""The shape of a base model, read from its `config.json`: what the forward of our own needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from claas_trainer.step_errors import UnsupportedModelError

_DEFAULT_THETA = 10_000.0
_ROPE_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
"""The ways in which a rope may be stretched, and what each can't do without."""


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (arXiv 2104.09864) and how it is stretched; `settings` are those of its kind, under
    the names that `config.json` gives them."""

    theta: float
    kind: str = "default"
    settings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelShape:
    """A decoder of the Llama family: Qwen3, Qwen2 and 2.5, Llama, Mistral.

    `head_dim` is the configuration's own, which need not be hidden / heads. `qk_norm`: RMSNorm on each head of q
    and k (Qwen3). `qkv_bias`: Qwen2. `tied`: the head is the embedding. `sliding_window`: how far back a token
    sees, None without a limit.
    """

    family: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    norm_epsilon: float = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = False
    tied: bool = False
    sliding_window: int | None = None

    @property
    def query_width(self) -> int:
        """Width of all query heads together, the input of `o_proj`."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all key heads together, and of the values'."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        """Rows of the fused qkv weight."""
        return self.query_width + 2 * self.key_width

    @property
    def layer_elements(self) -> int:
        """Elements of the matrices of one layer."""
        attention = (self.qkv_width + self.query_width) * self.hidden
        return attention + 3 * self.intermediate * self.hidden

    @property
    def head_elements(self) -> int:
        """Elements of the head."""
        return self.vocabulary * self.hidden

    @classmethod
    def of(cls, config: Mapping[str, object]) -> ModelShape:
        """The shape that a `config.json` describes.

        Raises:
            UnsupportedModelError: another architecture, or a feature that the forward of our own has not; the
                generic path is for those.
        """
        family = _text(config, "model_type")
        if family not in {"qwen3", "qwen2", "llama", "mistral"}:
            raise UnsupportedModelError(f"model_type is {family}")
        for name, wanted in (("hidden_act", "silu"), ("mlp_bias", False), ("quantization_config", None)):
            if config.get(name, wanted) not in (wanted, None):
                raise UnsupportedModelError(f"{name} is set")
        if family != "qwen2" and config.get("attention_bias"):
            raise UnsupportedModelError("attention_bias is set")
        hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
        layers = _whole(config, "num_hidden_layers")
        return cls(
            family=family,
            vocabulary=_whole(config, "vocab_size"),
            hidden=hidden,
            intermediate=_whole(config, "intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=_whole(config, "num_key_value_heads", heads),
            head_dim=_whole(config, "head_dim", 128 if family == "qwen3" else hidden // heads),
            rope=_rope(config),
            norm_epsilon=_number(config, "rms_norm_eps", 1e-6),
            qk_norm=family == "qwen3",
            qkv_bias=family == "qwen2",
            tied=bool(config.get("tie_word_embeddings", False)),
            sliding_window=_sliding_window(config, family, layers),
        )


def _rope(config: Mapping[str, object]) -> Rope:
    """transformers 5 writes `rope_parameters`; earlier files have `rope_theta` and, if stretched, `rope_scaling`."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise UnsupportedModelError("rope_parameters is no mapping")
    kind = str(found.get("rope_type") or found.get("type") or "default")
    if kind not in _ROPE_SETTINGS:
        raise UnsupportedModelError(f"rope_type is {kind}")
    if _number(config, "partial_rotary_factor", 1.0) != 1.0 or found.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("partial_rotary_factor is set")
    theta = found.get("rope_theta", config.get("rope_theta", _DEFAULT_THETA))
    if not isinstance(theta, int | float):
        raise UnsupportedModelError("rope_theta is no number")
    settings = {
        str(name): float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and name not in ("rope_theta", "partial_rotary_factor")
    }
    lacking = [name for name in _ROPE_SETTINGS[kind] if name not in settings]
    if lacking:
        raise UnsupportedModelError(f"rope_type is {kind} and {lacking[0]} is missing")
    if "original_max_position_embeddings" not in settings:
        settings["original_max_position_embeddings"] = _number(config, "max_position_embeddings", 0)
    return Rope(float(theta), kind, settings)


def _sliding_window(config: Mapping[str, object], family: str, layers: int) -> int | None:
    # What transformers takes where the file says nothing.
    window = config.get("sliding_window", None if family == "llama" else 4096)
    if family in ("qwen3", "qwen2"):
        window = window if config.get("use_sliding_window") else None
        if window is not None:
            full = min(_whole(config, "max_window_layers", 28), layers)
            kinds = config.get("layer_types") or ["full"] * full + ["sliding"] * (layers - full)
            if not isinstance(kinds, list) or len(set(kinds)) != 1:
                raise UnsupportedModelError("only some layers have a sliding window")
            window = window if str(kinds[0]).startswith("sliding") else None
    return window if isinstance(window, int) else None


def _text(config: Mapping[str, object], name: str) -> str:
    value = config.get(name)
    if not isinstance(value, str):
        raise UnsupportedModelError(f"{name} is missing")
    return value


def _whole(config: Mapping[str, object], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int):
        raise UnsupportedModelError(f"{name} is missing or no whole number")
    return value


def _number(config: Mapping[str, object], name: str, default: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float):
        raise UnsupportedModelError(f"{name} is no number")
    return float(value)
