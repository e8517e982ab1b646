"""Where the built model lies, and how it comes there once, whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

# What decides the weights: a change in one of these makes a new model.
RECIPE = ("corpus.py", "tasks.py", "tokenizer.py", "train.py")


def recipe_hash() -> str:
    """A hash over the sources that decide the weights, the hindsight block's text among them."""
    from claas_trainer.samples import hindsight

    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in [*(folder / name for name in RECIPE), Path(hindsight.__file__)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def default_folder(seed: int = 0) -> Path:
    """The model's folder in the cache (CLAAS_CACHE overrides where the cache is)."""
    cache = Path(os.environ.get("CLAAS_CACHE") or Path.home() / ".cache" / "claas-operator")
    return cache / "tiny-model" / (recipe_hash() if seed == 0 else f"{recipe_hash()}-seed{seed}")


def build(folder: Path, seed: int = 0) -> bool:
    """Makes the model's folder unless it is there; whether it had to be made.

    Only one process builds at a time, and the folder appears whole or not at all.

    Raises:
        NotTeachableError: the trained model misses a bar; nothing is written then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "model.safetensors").is_file():
            return False
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _train_into(partial, seed)
            # Readable by whoever runs the trainer and vLLM pods, whatever the umask was.
            for path in partial.iterdir():
                path.chmod(0o644)
            partial.chmod(0o755)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return True


def ensure(seed: int = 0) -> Path:
    """The model's folder in the cache, built first if need be (a few minutes)."""
    folder = default_folder(seed)
    build(folder, seed)
    return folder


def _train_into(folder: Path, seed: int) -> None:
    # torch and transformers are imported only when there is something to build.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from tests.tiny_model.check import check
    from tests.tiny_model.train import train

    logging.disable_progress_bar()
    model, tokenizer = train(seed)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    started = time.monotonic()
    # Judged as it will be used: read back from the bf16 file.
    check(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder))
    print(f"check: {time.monotonic() - started:.1f} s", flush=True)
