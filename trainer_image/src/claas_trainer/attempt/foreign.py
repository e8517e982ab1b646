"""Adapters of other trainers in the adapter's folder: they can't be imported, and are not ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from claas_contract.outcome import FailureReason
from claas_trainer.errors import InputError
from claas_trainer.store.errors import storage_errors
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, RECORD_FILE

_FILES = (ADAPTER_CONFIG_FILE, "adapter_model.safetensors", "adapter_model.bin")
_SAID = {
    "peft_type": "type",
    "base_model_name_or_path": "base model",
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "target modules",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
_LONGEST_VALUE = 100


def refuse_foreign(root: Path) -> None:
    """Checks that the adapter's folder holds no adapter of another trainer; for folders without versions. Raises
    InputError (FOREIGN_ADAPTER), which says what was found and what to do, and StoreError.
    """
    with storage_errors(root):
        found = next((folder for folder in _candidates(root) if _is_foreign(folder)), None)
        if found is None:
            return
        said = _description(found)
    raise InputError(
        f"storage.path: {found} holds a PEFT adapter that was not made here ({said}), and adapters can't be imported"
        " yet. It was left as it is: vLLM can serve it with --lora-modules. To start a new adapter from zero, give"
        " spec.storage.path a folder that holds none",
        FailureReason.FOREIGN_ADAPTER,
    )


def _candidates(root: Path) -> list[Path]:
    """The folder, its subfolders, and those among the versions, except hidden ones, which are remnants of writers."""
    folders = [root]
    for parent in (root / "versions", root):
        if parent.is_dir():
            folders += sorted(path for path in parent.iterdir() if not path.name.startswith(".") and path.is_dir())
    return folders


def _is_foreign(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES) and not (folder / RECORD_FILE).is_file()


def _description(folder: Path) -> str:
    """Description from its configuration, if that is readable."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return f"no readable {ADAPTER_CONFIG_FILE}"
    if not isinstance(config, Mapping):
        return f"no readable {ADAPTER_CONFIG_FILE}"
    return ", ".join(f"{name} {_short(config[key])}" for key, name in _SAID.items() if config.get(key)) or "no shape"


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
