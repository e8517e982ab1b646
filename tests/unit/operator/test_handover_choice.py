"""Which hand-over is chosen, by the adapter's spec and the Deployment's own flags: tables."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from claas_crds.lora_adapter import HandoverKind
from claas_crds.pod import TrainerPod
from claas_operator.core import Deployment, PodSpec
from claas_operator.handover_choice import ServerTraits, by_traits, choose_handover, traits_of
from tests.builders.world import DEPLOYMENT, adapter

SLEEP, SHARE, NONE = HandoverKind.SLEEP, HandoverKind.SHARE, HandoverKind.NONE
EXPORT = "--worker-extension-cls=claas_vllm.WeightExport"


@pytest.mark.parametrize(
    ("sleep_mode", "exports", "on_gpu", "own_gpu", "chosen"),
    [
        (True, False, True, False, SLEEP),
        (True, True, True, False, SLEEP),
        (True, False, True, True, SLEEP),
        (True, False, False, False, SLEEP),
        (False, True, True, False, SHARE),
        (False, True, True, True, SHARE),
        (False, True, False, False, SHARE),
        (False, False, True, True, NONE),
        (False, False, False, True, NONE),
        (False, False, False, False, SHARE),
        (False, False, True, False, None),
    ],
)
def test_auto_chooses_by_what_the_server_and_the_trainer_have(
    sleep_mode: bool, exports: bool, on_gpu: bool, own_gpu: bool, chosen: HandoverKind | None
) -> None:
    choice = by_traits(ServerTraits(sleep_mode, exports, on_gpu), trainer_has_gpu=own_gpu)
    assert choice.kind is chosen
    assert choice.message


def test_where_nothing_would_do_the_message_names_both_flags_and_the_way_to_say_it_by_hand() -> None:
    message = by_traits(ServerTraits(False, False, True), trainer_has_gpu=False).message
    for named in ("--enable-sleep-mode", "--worker-extension-cls claas_vllm.WeightExport", "spec.serving.handover"):
        assert named in message


def pod(container: dict[str, JsonValue], **spec: JsonValue) -> PodSpec:
    first: JsonValue = {"name": "vllm", **container}
    return PodSpec.model_validate(
        {"containers": [first, {"name": "beside", "args": ["--enable-sleep-mode"]}], **spec}
    )


def args(*words: str) -> PodSpec:
    return pod({"command": ["vllm", "serve"], "args": list(words)})


@pytest.mark.parametrize(
    ("spec", "sleep_mode", "exports"),
    [
        (args(), False, False),
        (args("--enable-sleep-mode"), True, False),
        (args("--enable_sleep_mode"), True, False),
        (args("--enable-sleep-mode", "--no-enable-sleep-mode"), False, False),
        (args("--no-enable-sleep-mode", "--enable-sleep-mode"), True, False),
        (args("--enable-sleep-mode-not"), False, False),
        (args(EXPORT), False, True),
        (args("--worker-extension-cls", "claas_vllm.WeightExport"), False, True),
        (args("--worker_extension_cls=claas_vllm.WeightExport"), False, True),
        (args("--worker-extension-cls", "another.Class"), False, False),
        (args("--worker-extension-cls"), False, False),
        (args(EXPORT, "--worker-extension-cls=another.Class"), False, False),
        (args("--enable-sleep-mode", EXPORT), True, True),
        (pod({"command": ["vllm", "serve", "--enable-sleep-mode"]}), True, False),
        (
            pod({"command": ["sh", "-c"], "args": ["exec vllm serve m \\\n --enable-sleep-mode --port 1"]}),
            True,
            False,
        ),
        (pod({"command": ["sh", "-c"], "args": ["vllm serve m # --enable-sleep-mode"]}), False, False),
        (pod({"args": ["it's", "--enable-sleep-mode"]}), True, False),
    ],
)
def test_flags_are_read_from_command_and_arguments_of_the_vllm_container(
    spec: PodSpec, sleep_mode: bool, exports: bool
) -> None:
    traits = traits_of(spec, None)
    assert (traits.sleep_mode, traits.exports_weights) == (sleep_mode, exports)


def test_the_container_that_the_adapter_names_is_the_one_that_is_read() -> None:
    assert traits_of(args(), "beside").sleep_mode
    assert not traits_of(args("--enable-sleep-mode"), "absent").sleep_mode


@pytest.mark.parametrize(
    ("spec", "on_gpu"),
    [
        (args(), False),
        (pod({"resources": {"requests": {"cpu": "4", "memory": "8Gi", "example.com/nic": "1"}}}), False),
        (pod({"resources": {"limits": {"nvidia.com/gpu": "1"}}}), True),
        (pod({"resources": {"requests": {"amd.com/gpu": 1}}}), True),
        (pod({"resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}), True),
        (pod({"resources": {"claims": [{"name": "gpu"}]}}), True),
        (pod({}, resourceClaims=[{"name": "gpu", "resourceClaimName": "one"}]), True),
        (pod({}, runtimeClassName="nvidia"), True),
        (pod({"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}), True),
        (pod({"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]}), False),
    ],
)
def test_a_server_that_may_see_a_gpu_is_no_server_on_the_cpu(spec: PodSpec, on_gpu: bool) -> None:
    assert traits_of(spec, None).on_gpu is on_gpu


def deployment(spec: PodSpec) -> Deployment:
    return Deployment.model_validate({"metadata": {"name": DEPLOYMENT}, "spec": {"template": {"spec": spec}}})


CLAIMED = pod(
    {"resources": {"claims": [{"name": "gpu"}]}}, resourceClaims=[{"name": "gpu", "resourceClaimName": "a"}]
)


@pytest.mark.parametrize(
    ("trainer", "chosen"),
    [
        ({}, None),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, NONE),
        ({"resourceClaims": [{"name": "gpu", "resourceClaimName": "a"}]}, None),
        ({"resourceClaims": [{"name": "gpu", "resourceClaimName": "b"}]}, NONE),
        ({"runtimeClassName": "nvidia"}, None),
    ],
)
def test_only_a_gpu_that_the_server_does_not_name_is_the_trainers_own(
    trainer: dict[str, JsonValue], chosen: HandoverKind | None
) -> None:
    of = adapter(trainer=TrainerPod.model_validate(trainer))
    assert choose_handover(of, deployment(CLAIMED)).kind is chosen


@pytest.mark.parametrize("kind", [SLEEP, SHARE, NONE])
def test_what_the_spec_says_is_taken_whatever_the_flags_are(kind: HandoverKind) -> None:
    of = adapter(serving={"handover": kind.value})
    assert choose_handover(of, deployment(args())).kind is kind
    assert choose_handover(of, None).kind is kind


def test_sharing_memory_that_the_sleep_mode_made_is_refused_with_what_to_change() -> None:
    of = adapter(serving={"handover": "Share"})
    on_gpu = pod({"args": ["--enable-sleep-mode", EXPORT], "resources": {"limits": {"nvidia.com/gpu": 1}}})
    choice = choose_handover(of, deployment(on_gpu))
    assert choice.kind is None
    assert "--enable-sleep-mode" in choice.message


def test_auto_without_a_deployment_chooses_nothing() -> None:
    assert choose_handover(adapter(), None).kind is None
