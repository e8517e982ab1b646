"""Small random models and adapters for tests, made on the spot: real files in the real formats, nothing learned."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def build_tiny_qwen3(folder: Path, *, seed: int = 0) -> Path:
    """Write a random Qwen3 (about 0.3 M parameters) with a byte-level tokenizer; returns the folder.

    Greedy answers are long and varied: the end token is never the likeliest.
    """
    tokenizer = _byte_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=16384,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_adapter(model_folder: Path, folder: Path, *, seed: int, rank: int = 8, scale: float = 0.3) -> Path:
    """Write a PEFT LoRA adapter of that model with random A and B (normal, deviation `scale` for B)."""
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(TARGET_MODULES), bias="none", task_type="CAUSAL_LM"
    )
    get_peft_model(base, config).save_pretrained(folder)
    _randomise(folder, seed, scale)
    return folder


def build_versions(model_folder: Path, storage: Path, *, count: int, rank: int = 8) -> list[Path]:
    """Write `<storage>/versions/1` to `count`, each with weights of its own; returns the folders in order."""
    first = build_adapter(model_folder, storage / "versions" / "1", seed=1, rank=rank)
    folders = [first]
    for number in range(2, count + 1):
        folder = storage / "versions" / str(number)
        folder.mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).write_bytes((first / file).read_bytes())
        _randomise(folder, number, 0.3)
        folders.append(folder)
    return folders


def silence_adapter(folder: Path) -> None:
    """Make an adapter one that changes nothing: the base answers."""
    file = folder / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in load_file(file).items()}, file)


def spoil_adapter(folder: Path) -> None:
    """Make every weight of an adapter NaN, as a diverged step would."""
    file = folder / "adapter_model.safetensors"
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(file).items()}, file)


def _randomise(folder: Path, seed: int, scale: float) -> None:
    file = folder / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(value.shape, generator=generator) * (scale if "lora_B" in name else 0.1)
        for name, value in sorted(load_file(file).items())
    }
    save_file(weights, file, metadata={"format": "pt"})


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
