"""Which hand-over is chosen, by the adapter's spec and the Deployment's own flags: tables."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from claas_contract.engine import ENGINE_NEEDS, EngineNeeds, ServingNeed
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.trainer_pod import TrainerPod
from claas_kube.objects.pods import PodSpec
from claas_kube.objects.workloads import Deployment
from claas_operator.observe.serving_pods import handover_of
from claas_operator.plan.engine.choice import needs_of
from claas_operator.plan.server.handover_choice import by_traits, choose_handover
from claas_operator.plan.server.traits import ServerTraits, traits_of
from tests.builders.world import DEPLOYMENT, adapter

LOCAL = ENGINE_NEEDS[EngineName.LOCAL]
SLEEP, SHARE, NONE = HandoverKind.SLEEP, HandoverKind.SHARE, HandoverKind.NONE
EXPORT = "--worker-extension-cls=claas_vllm.WeightExport"


@pytest.mark.parametrize(
    ("sleep_mode", "exports", "on_gpu", "own_gpu", "chosen"),
    [
        (True, None, None, False, SLEEP),
        (None, True, None, False, SHARE),
        (None, None, None, True, NONE),
        (False, False, None, True, NONE),
        (None, None, False, False, SHARE),
        (False, False, None, False, None),
        (None, False, True, False, None),
        (None, None, None, False, None),
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
    sleep_mode: bool | None, exports: bool | None, on_gpu: bool | None, own_gpu: bool, chosen: HandoverKind | None
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
        (pod({}), None, None),
        (args("--config", "/etc/vllm.yaml"), None, None),
        (args("--config=/etc/vllm.yaml", "--enable-sleep-mode"), True, None),
        (pod({"command": ["/start.sh"]}), None, None),
        (pod({"command": ["/start.sh", "--enable-sleep-mode"]}), True, None),
        (pod({"command": ["sh", "/start.sh"]}), None, None),
    ],
)
def test_flags_are_read_from_command_and_arguments_of_the_vllm_container(
    spec: PodSpec, sleep_mode: bool | None, exports: bool | None
) -> None:
    traits = traits_of(spec, None)
    assert (traits.sleep_mode, traits.exports_weights) == (sleep_mode, exports)


def test_the_container_that_the_adapter_names_is_the_one_that_is_read() -> None:
    assert traits_of(args(), "beside").sleep_mode
    assert traits_of(args("--enable-sleep-mode"), "absent").sleep_mode is None
    assert not traits_of(args("--enable-sleep-mode"), "absent").sleep_mode


@pytest.mark.parametrize(
    ("spec", "on_gpu"),
    [
        (args(), None),
        (pod({"resources": {"requests": {"cpu": "4", "memory": "8Gi", "example.com/nic": "1"}}}), None),
        (pod({"resources": {"limits": {"nvidia.com/gpu": "0"}}}), None),
        (pod({"image": "registry/vllm/vllm-openai-cpu:v0.32"}), False),
        (pod({"image": "registry/vllm-cpu@sha256:00"}), False),
        (pod({"image": "registry/cpuset/vllm:1"}), None),
        (pod({"image": "registry/vllm-cpu:1", "resources": {"limits": {"nvidia.com/gpu": "1"}}}), True),
        (pod({"env": [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "4"}]}), False),
        (args("--device", "cpu"), False),
        (pod({"resources": {"limits": {"nvidia.com/gpu": "1"}}}), True),
        (pod({"resources": {"requests": {"amd.com/gpu": 1}}}), True),
        (pod({"resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}), True),
        (pod({"resources": {"claims": [{"name": "gpu"}]}}), True),
        (pod({}, resourceClaims=[{"name": "gpu", "resourceClaimName": "one"}]), True),
        (pod({}, runtimeClassName="nvidia"), True),
        (pod({"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}), True),
        (pod({"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]}), False),
        (pod({"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "valueFrom": {"configMapKeyRef": {}}}]}), None),
        (pod({"resources": {"limits": {"gpu.intel.com/i915": 1}}}), True),
    ],
)
def test_a_server_that_may_see_a_gpu_is_no_server_on_the_cpu_and_one_that_shows_neither_is_not_known(
    spec: PodSpec, on_gpu: bool | None
) -> None:
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
    assert choose_handover(of, LOCAL, deployment(CLAIMED)).kind is chosen


@pytest.mark.parametrize("kind", [SLEEP, SHARE, NONE])
def test_what_the_spec_says_is_taken_whatever_the_flags_are(kind: HandoverKind) -> None:
    of = adapter(serving={"handover": kind.value})
    assert choose_handover(of, LOCAL, deployment(args())).kind is kind
    assert choose_handover(of, LOCAL, None).kind is kind


def test_sharing_memory_that_the_sleep_mode_made_is_refused_with_what_to_change() -> None:
    of = adapter(serving={"handover": "Share"})
    on_gpu = pod({"args": ["--enable-sleep-mode", EXPORT], "resources": {"limits": {"nvidia.com/gpu": 1}}})
    choice = choose_handover(of, LOCAL, deployment(on_gpu))
    assert choice.kind is None
    assert "--enable-sleep-mode" in choice.message


@pytest.mark.parametrize("base_weights", [True, False])
@pytest.mark.parametrize("kind", HandoverKind)
@pytest.mark.parametrize("flags", [(), ("--enable-sleep-mode",), ("--disable-log-stats",)])
def test_an_engine_that_needs_nothing_of_serving_leaves_it_alone_whatever_spec_and_server_say(
    flags: tuple[str, ...], kind: HandoverKind, base_weights: bool
) -> None:
    needs = EngineNeeds(ServingNeed.NOTHING, base_weights=base_weights)
    of = adapter(serving={"handover": kind.value})
    for seen in (None, deployment(args(*flags))):
        for reported in ((), (ServerTraits(sleep_mode=True, can_pause=False, on_gpu=True),)):
            assert choose_handover(of, needs, seen, reported).kind is NONE


@pytest.mark.parametrize("name", EngineName)
def test_what_an_adapters_engine_needs_is_its_own_or_by_the_execution_mode(name: EngineName) -> None:
    of = adapter()
    assert needs_of(of, name) == ENGINE_NEEDS[name]
    spec = of.spec.model_copy(update={"engine": EngineSpec.of(name)})
    assert needs_of(of.model_copy(update={"spec": spec}), EngineName.LOCAL) == ENGINE_NEEDS[name]


def test_auto_without_a_deployment_chooses_nothing() -> None:
    assert choose_handover(adapter(), LOCAL, None).kind is None


@pytest.mark.parametrize(
    ("reported", "chosen"),
    [
        (ServerTraits(sleep_mode=True, exports_weights=False, on_gpu=True), SLEEP),
        (ServerTraits(sleep_mode=False, exports_weights=True, on_gpu=True), SHARE),
        (ServerTraits(sleep_mode=False, exports_weights=False, on_gpu=False), SHARE),
        (ServerTraits(sleep_mode=False, exports_weights=False, on_gpu=True), None),
        (ServerTraits(on_gpu=True), SLEEP),
    ],
)
def test_what_a_server_says_of_itself_comes_before_its_deployments_text(
    reported: ServerTraits, chosen: HandoverKind | None
) -> None:
    text = deployment(args("--enable-sleep-mode"))
    assert choose_handover(adapter(), LOCAL, text, (reported, reported)).kind is chosen


def test_while_pods_differ_in_what_decides_nothing_is_chosen() -> None:
    sleeps = ServerTraits(sleep_mode=True, exports_weights=False)
    shares = ServerTraits(sleep_mode=False, exports_weights=True)
    choice = choose_handover(adapter(), LOCAL, deployment(args()), (sleeps, shares))
    assert choice.kind is None
    assert "rollout" in choice.message
    named = adapter(serving={"handover": "None"})
    assert choose_handover(named, LOCAL, deployment(args()), (sleeps, shares)).kind is NONE


@pytest.mark.parametrize(
    ("kind", "on_gpu", "chosen"),
    [
        ("Sleep", True, None),
        ("Sleep", False, None),
        ("Share", True, None),
        ("Share", False, SHARE),
        ("None", True, NONE),
    ],
)
def test_a_hand_over_that_needs_control_routes_is_refused_where_they_are_closed(
    kind: str, on_gpu: bool, chosen: HandoverKind | None
) -> None:
    closed = ServerTraits(sleep_mode=False, exports_weights=True, on_gpu=on_gpu, can_pause=False)
    choice = choose_handover(adapter(serving={"handover": kind}), LOCAL, deployment(args()), (closed,))
    assert choice.kind is chosen
    assert ("VLLM_SERVER_DEV_MODE=1" in choice.message) is (chosen is None)


@pytest.mark.parametrize(("kind", "told"), [("Share", True), ("Sleep", False), ("None", False)])
def test_without_statistics_status_says_that_the_slowdown_cannot_be_bounded(kind: str, told: bool) -> None:
    of = adapter(serving={"handover": kind, "maxSlowdown": 25})
    choice = choose_handover(of, LOCAL, deployment(args("--disable-log-stats")))
    assert choice.kind == kind
    assert ("maxSlowdown (25 %) can't be kept" in choice.message) is told
    assert "--disable-log-stats" not in choose_handover(of, LOCAL, deployment(args())).message


FIELD = """vllm serve /models/llama \\
--served-model-name chat \\
--enable-lora --max-lora-rank 64 \\
--enable-sleep-mode \\
--port 9000
"""


def test_a_script_whose_continued_lines_are_not_indented_is_one_command() -> None:
    script = pod(
        {
            "command": ["/bin/sh", "-c"],
            "args": [FIELD],
            "resources": {"limits": {"nvidia.com/gpu": 1}},
        }
    )
    found = traits_of(script, None)
    assert (found.sleep_mode, found.max_lora_rank, found.served_model_names) == (True, 64, ("chat",))
    assert choose_handover(adapter(), LOCAL, deployment(script)).kind is SLEEP


@pytest.mark.parametrize(
    ("spec", "trait", "value"),
    [
        (args("/m", "--enable-lora"), "lora_enabled", True),
        (args("/m"), "lora_enabled", False),
        (pod({"args": ["/m"]}), "lora_enabled", None),
        (args("/m"), "max_lora_rank", 16),
        (args("/m", "--max-lora-rank=128"), "max_lora_rank", 128),
        (args("/m", "--max-lora-rank", "$(RANK)"), "max_lora_rank", None),
        (pod({"args": ["/m"]}), "max_lora_rank", None),
        (args("/m", "--max_loras", "4"), "max_loras", 4),
        (args("/m", "--served-model-name", "a", "b", "--port", "1"), "served_model_names", ("a", "b")),
        (args("/m", "--served-model-name=a"), "served_model_names", ("a",)),
        (args("/m"), "served_model_names", None),
        (args("/m", "--lora-target-modules", "o_proj", "qkv_proj"), "lora_modules", ("o_proj", "qkv_proj")),
        (args("/m"), "lora_modules", ()),
        (pod({"args": ["/m"]}), "lora_modules", None),
        (args("/m", "--disable-log-stats"), "log_stats", False),
        (args("/m"), "log_stats", True),
        (args("/m", "--ssl-certfile", "/tls.crt"), "tls", True),
        (args("/m"), "tls", False),
        (pod({"args": ["/m"]}), "tls", None),
        (
            pod({"env": [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "true"}], "args": ["/m"]}),
            "loads_adapters",
            True,
        ),
        (
            pod({"env": [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "0"}], "args": ["/m"]}),
            "loads_adapters",
            False,
        ),
        (args("/m"), "loads_adapters", None),
        (pod({"command": ["sh", "-c", "VLLM_SERVER_DEV_MODE=1 vllm serve /m"]}), "can_pause", True),
        (pod({"command": ["sh", "-c", "export VLLM_SERVER_DEV_MODE=0; vllm serve /m"]}), "can_pause", False),
    ],
)
def test_what_else_the_command_line_tells_is_read_and_the_rest_is_not_known(
    spec: PodSpec, trait: str, value: object
) -> None:
    assert getattr(traits_of(spec, None), trait) == value


SAID = LoraAdapterStatus(observed_generation=1, handover=SHARE, handover_message="vLLM says so")


@pytest.mark.parametrize(
    ("status", "asked", "kind"),
    [
        (SAID, False, SHARE),
        (SAID, True, SLEEP),
        (SAID.model_copy(update={"observed_generation": 0}), False, SLEEP),
        (SAID.model_copy(update={"handover": None}), False, None),
        (LoraAdapterStatus(), False, SLEEP),
    ],
)
def test_a_job_whose_servers_are_not_asked_goes_by_what_its_adapter_says(
    status: LoraAdapterStatus, asked: bool, kind: HandoverKind | None
) -> None:
    of = adapter().model_copy(update={"status": status})
    assert handover_of(of, EngineName.LOCAL, deployment(args("--enable-sleep-mode")), (), asked=asked).kind is kind
