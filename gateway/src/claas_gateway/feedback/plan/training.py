"""Training settings as clients send them: CLaaS's names and ranges, unknown ones ignored."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue, ValidationError

from claas_crds.v1alpha1.training import TrainingOverrides
from claas_gateway.errors import Unprocessable

_CLAAS_TOP_K = 100


def read_training(given: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The settings among `given`, as a job takes them. Raises Unprocessable, which names the setting and its
    range."""
    known = {name: value for name, value in given.items() if name in TrainingOverrides.model_fields}
    try:
        settings = TrainingOverrides.model_validate(known)
    except ValidationError as error:
        faults = (
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False)
        )
        raise Unprocessable(f"invalid training config: {'; '.join(faults)}") from None
    read: dict[str, JsonValue] = settings.model_dump(mode="json", exclude_none=True)
    return read


def without_claas_default(training: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The settings for an adapter that samples from a service. Clients of CLaaS send its defaults with each request,
    and its `teacher_top_k` is more than a service tells: it counts as left out. Any other value is as it was sent."""
    return {name: value for name, value in training.items() if (name, value) != ("teacher_top_k", _CLAAS_TOP_K)}
