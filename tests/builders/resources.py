"""Builders of LoraAdapters, DistillJobs and what goes with them, as plain manifests."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from claas_crds import API_VERSION
from claas_crds.v1alpha1.serving import HandoverKind

Manifest = Mapping[str, object]

CONTROL_SECRET = "vllm-control"
ADAPTER_CLAIM = "adapters"
MODEL_CLAIM = "model"
MODEL_PATH = "tiny"
BASE_NAME = "tiny"
DEPLOYMENT = "vllm"
HANDOVER_VARIABLE = "HANDOVER"
"""Names the hand-over of adapters in the demo and in end-to-end tests."""


def chosen_handover() -> HandoverKind:
    """The hand-over that the environment names; Sleep where it names none. Raises ValueError for no known one."""
    return HandoverKind(os.environ.get(HANDOVER_VARIABLE) or HandoverKind.SLEEP)


def lora_adapter(
    name: str,
    namespace: str,
    *,
    serving: Mapping[str, JsonValue] | None = None,
    training: Mapping[str, JsonValue] | None = None,
    trainer: Mapping[str, JsonValue] | None = None,
    lora: Mapping[str, JsonValue] | None = None,
    claim: str = ADAPTER_CLAIM,
    deployment: str = DEPLOYMENT,
    control_secret: str | None = CONTROL_SECRET,
    handover: str | None = None,
) -> Manifest:
    """A LoraAdapter on the tiny model, served by a vLLM with the companion; `handover` None: the environment's."""
    token = {"controlTokenSecretRef": {"name": control_secret}} if control_secret else {}
    return {
        "apiVersion": API_VERSION,
        "kind": "LoraAdapter",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {
                "name": BASE_NAME,
                "source": {"persistentVolumeClaim": {"claimName": MODEL_CLAIM, "path": MODEL_PATH}},
            },
            "lora": {"rank": 8, "alpha": 16, **(lora or {})},
            "serving": {
                "deploymentRef": {"name": deployment},
                "handover": str(handover or chosen_handover()),
                **token,
                **(serving or {}),
            },
            "storage": {"claimName": claim},
            "training": dict(training or {}),
            # Without a request a trainer gets next to no CPU beside anything else that runs.
            "trainer": {"resources": {"requests": {"cpu": "400m"}}, **(trainer or {})},
        },
    }


def sample(
    user_prompt: str = "What color is grass?", response: str = "It is green.", feedback: str = "no emojis"
) -> dict[str, JsonValue]:
    """A sample written by hand."""
    return {"user_prompt": user_prompt, "response": response, "feedback": feedback}


def distill_job(
    name: str,
    namespace: str,
    adapter: str,
    samples: Sequence[Mapping[str, JsonValue]] | None = None,
    *,
    source: Mapping[str, JsonValue] | None = None,
    **spec: JsonValue,
) -> Manifest:
    """A DistillJob with inline samples, or with another `source` of them."""
    return {
        "apiVersion": API_VERSION,
        "kind": "DistillJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "adapterRef": {"name": adapter},
            "samples": source or {"inline": [dict(each) for each in samples or [sample()]]},
            **spec,
        },
    }
