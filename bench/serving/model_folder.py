"""A model that was never trained, as a folder of the usual files: for servers and trainers that read one.

python bench/serving/model_folder.py --shape qwen3-8b --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In place of this folder, whose modules would hide others of their names.
sys.path[:1] = [str(ROOT), str(ROOT / "trainer_image/src")]

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bench.compute.shapes import SHAPES, THETAS
from bench.serving.words import word
from claas_trainer.forward.weights.layout import EMBEDDING, FINAL_NORM, HEAD, layer_parts
from claas_trainer.model.shape import ModelShape

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> "
    "{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
_SPECIAL = ["<|im_start|>", "<|im_end|>", "<|unknown|>"]
_DEVIATION = 0.02
_CONTEXT_TOKENS = 4096


def write_model(folder: Path, shape: ModelShape, theta: float, device: torch.device, dtype: torch.dtype) -> None:
    """Random weights, drawn on the device and written layer by layer, a configuration, and a tokenizer that knows a
    word for each token."""
    folder.mkdir(parents=True)
    places: dict[str, str] = {}
    for number, tensors in enumerate(_shards(shape, device, dtype)):
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(_config(shape, theta, dtype), indent=1))
    _tokenizer(shape.vocabulary).save_pretrained(folder)


def _shards(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator(device).manual_seed(0)

    def drawn(name: str, size: tuple[int, ...]) -> Tensor:
        mean = 1.0 if "norm" in name else 0.0
        return torch.empty(size, dtype=dtype, device=device).normal_(mean, _DEVIATION, generator=generator).cpu()

    matrix = (shape.vocabulary, shape.hidden)
    first = {EMBEDDING: matrix, FINAL_NORM: (shape.hidden,)} | ({} if shape.tied else {HEAD: matrix})
    yield {name: drawn(name, size) for name, size in first.items()}
    for layer in range(shape.layers):
        parts = [part for pieces in layer_parts(shape).values() for part in pieces]
        yield {f"model.layers.{layer}.{name}": drawn(name, size) for name, size in parts}


def _config(shape: ModelShape, theta: float, dtype: torch.dtype) -> dict[str, object]:
    names = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
    return {
        "architectures": [names[shape.family]],
        "model_type": shape.family,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rope_theta": theta,
        "rms_norm_eps": shape.norm_epsilon,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": _CONTEXT_TOKENS,
        "hidden_act": "silu",
        "attention_bias": False,
        "eos_token_id": shape.vocabulary - len(_SPECIAL) + 1,
        "bos_token_id": None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    words = [word(token) for token in range(vocabulary - len(_SPECIAL))] + _SPECIAL
    model = models.WordLevel({text: token for token, text in enumerate(words)}, unk_token=_SPECIAL[2])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_SPECIAL[1], pad_token=_SPECIAL[1], unk_token=_SPECIAL[2]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    write_model(options.out, SHAPES[options.shape], THETAS[options.shape], device, dtype)


if __name__ == "__main__":
    main()
