"""RoPE frequencies from a base model's configuration, read and computed by transformers' own functions."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

from claas_trainer.model.shape import Rope
from claas_trainer.sdpo.errors import UnsupportedModelError

_KINDS = ("default", "linear", "llama3", "yarn")
"""RoPE scaling methods whose frequencies do not depend on the length of a sequence."""
_KEYS = ("rope_scaling", "rope_theta", "partial_rotary_factor")
"""Keys that transformers reads at the top level, besides `rope_parameters`."""


def read_rope(config: Mapping[str, object], head_dim: int, context: int) -> Rope:
    """RoPE of a model with this head dimension; `context`: its `max_position_embeddings`.

    Raises:
        UnsupportedModelError: it is of another kind, or transformers would refuse it too.
    """
    try:
        return _read(config, head_dim, context)
    except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"its rope settings can't be used ({type(error).__name__}: {error})") from error


def _read(config: Mapping[str, object], head_dim: int, context: int) -> Rope:
    # Quick to import, unlike the configuration classes of models.
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RotaryEmbeddingConfigMixin

    class RopeSettings(RotaryEmbeddingConfigMixin):  # type: ignore[misc]
        """The part of a configuration that RoPE depends on, combined in transformers' order."""

        def __init__(self) -> None:
            self.head_dim = self.hidden_size = head_dim
            self.num_attention_heads = 1
            self.max_position_embeddings = context
            self.rope_parameters = copy.deepcopy(config.get("rope_parameters"))
            self.convert_rope_params_to_dict(**{key: copy.deepcopy(config[key]) for key in _KEYS if key in config})
            for key in ("original_max_position_embeddings", "partial_rotary_factor"):
                if key in config:
                    setattr(self, key, config[key])

    settings = RopeSettings()
    found = settings.rope_parameters
    if not isinstance(found, dict) or any(isinstance(value, Mapping) for value in found.values()):
        raise UnsupportedModelError("rope_parameters differ by layer")
    kind = found["rope_type"]
    if kind not in _KINDS:
        raise UnsupportedModelError(f"rope_type is {kind}")
    if found.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("partial_rotary_factor is set")
    if kind == "default":
        return _checked(Rope.plain(found["rope_theta"], head_dim), head_dim)
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](settings)
    return _checked(Rope(tuple(frequencies.float().tolist()), float(scale)), head_dim)


def _checked(rope: Rope, head_dim: int) -> Rope:
    usable = len(rope.frequencies) == head_dim // 2 and all(map(math.isfinite, rope.frequencies))
    if not usable or not math.isfinite(rope.scale):
        raise UnsupportedModelError("its rope settings give no usable frequencies")
    return rope
