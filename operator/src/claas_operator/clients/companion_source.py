"""The companion's source, which the operator keeps in a ConfigMap beside each adapter."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from claas_kube.objects.meta import Manifest
from claas_operator.errors import SettingsError


@dataclass(frozen=True)
class CompanionSource:
    """The package `claas_vllm`: the text of each file, by name. Never imported here, because it runs inside vLLM."""

    files: Mapping[str, str]

    @classmethod
    def installed(cls) -> CompanionSource:
        """The package that was installed beside the operator."""
        found = importlib.util.find_spec("claas_vllm")
        folders = found.submodule_search_locations if found else None
        if not folders:
            raise SettingsError("the package claas_vllm is not installed beside the operator: the image is broken")
        return cls({file.name: file.read_text(encoding="utf-8") for file in sorted(Path(folders[0]).glob("*.py"))})

    def is_current(self, config_map: Manifest | None) -> bool:
        """Whether a ConfigMap carries these files."""
        data = cast(dict[str, str], (config_map or {}).get("data") or {})
        return all(data.get(name) == text for name, text in self.files.items())
