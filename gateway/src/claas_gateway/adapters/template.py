"""The template of the adapters that `/v1/lora/init` makes: a file with their namespace and what their specs share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from pydantic import JsonValue, ValidationError

from claas_crds.v1alpha1.lora_adapter import LoraAdapterSpec
from claas_gateway.errors import SettingsError

_OWN_FIELDS = (("loraId",), ("serving", "servedName"))
"""Fields that come from each request."""


@dataclass(frozen=True)
class AdapterTemplate:
    """Where adapters are made, and what they have in common."""

    namespace: str
    spec: dict[str, JsonValue]
    """As in a LoraAdapter's manifest. `storage.path`, if set, is the folder that holds the folder of each."""
    parsed: LoraAdapterSpec

    @property
    def base_models(self) -> frozenset[str]:
        """Names by which a request may call the base model: in vLLM, on the hub, and of the engine's service."""
        model, engine = self.parsed.model, self.parsed.engine
        service = engine.tinker.base_model if engine is not None and engine.tinker is not None else None
        return frozenset({model.name, model.public_name} | ({service} if service is not None else set()))


def read_template(path: Path) -> AdapterTemplate:
    """Read the template; raises SettingsError that says what is wrong with it."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the adapter template {path} can't be read: {error}") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place is not None else ""
        raise SettingsError(f"the adapter template {path} is not YAML: an error{line}") from None
    return parse_template(document, f"the adapter template {path}")


def parse_template(document: object, called: str = "the adapter template") -> AdapterTemplate:
    """Check a template; raises SettingsError that names it as `called`."""
    if not isinstance(document, dict) or set(document) != {"namespace", "spec"}:
        raise SettingsError(f"{called} needs `namespace` and `spec`, and nothing else")
    namespace, spec = document["namespace"], document["spec"]
    if not isinstance(namespace, str) or not namespace:
        raise SettingsError(f"{called}: namespace is not a name")
    if not isinstance(spec, dict):
        raise SettingsError(f"{called}: spec is not a LoraAdapter's spec")
    for field in _OWN_FIELDS:
        if _has(spec, field):
            raise SettingsError(f"{called}: leave out spec.{'.'.join(field)}, which each request gives")
    try:
        parsed = LoraAdapterSpec.model_validate(spec)
    except ValidationError as error:
        faults = [f"spec.{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        raise SettingsError(f"{called}: {'; '.join(faults)}") from None
    serving = parsed.serving
    if [serving.deployment_ref, serving.tinker_proxy, serving.modal_app].count(None) != 2:
        raise SettingsError(f"{called}: spec.serving needs exactly one of deploymentRef, tinkerProxy and modalApp")
    return AdapterTemplate(namespace, cast(dict[str, JsonValue], spec), parsed)


def _has(spec: object, field: tuple[str, ...]) -> bool:
    for name in field:
        if not isinstance(spec, dict) or name not in spec:
            return False
        spec = spec[name]
    return True
