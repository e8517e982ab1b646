"""The companion's source text, which the operator keeps in a ConfigMap beside each adapter."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from claas_operator.core import Manifest
from claas_operator.errors import SettingsError
from claas_operator.naming import COMPANION_KEY


@dataclass(frozen=True)
class CompanionSource:
    """The module `claas_vllm` as text. It is never imported here: it runs inside vLLM."""

    text: str

    @classmethod
    def installed(cls) -> CompanionSource:
        """The text of the module that was installed beside the operator."""
        found = importlib.util.find_spec("claas_vllm")
        if found is None or found.origin is None:
            raise SettingsError("the module claas_vllm is not installed beside the operator: the image is broken")
        return cls(Path(found.origin).read_text(encoding="utf-8"))

    def is_current(self, config_map: Manifest | None) -> bool:
        """Whether a ConfigMap carries this text."""
        data = cast(dict[str, str], (config_map or {}).get("data") or {})
        return data.get(COMPANION_KEY) == self.text
