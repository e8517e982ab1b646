"""Adapters exported from the Tinker service: version 0, versions of steps, and what a vLLM answers with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from claas_contract.input import AdapterIdentity, ModelLocation, TrainerInput
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineSpec, TinkerEngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.training import TrainingConfig
from claas_tinker_client.version_file import TinkerVersion
from claas_trainer.attempt.initialise import initial_seed, initialise
from claas_trainer.errors import TrainerError
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths
from claas_trainer.store.versions import StoredVersion, VersionStore
from tests.contract.site import API_KEY, TOKEN, Site
from tests.contract.tinker.both_engines import RANK, Side, samples, tinker_side
from tests.contract.vllm_server import BASE_MODEL
from tests.peers.tinker.calls import BILLED, Operation
from tests.peers.tinker.failures import Answer
from tests.peers.tinker.model.lora import ALPHA
from tests.peers.tinker.server import API_KEY as SERVICE_KEY
from tests.peers.tinker.server import TinkerPeer

pytestmark = pytest.mark.contract

TRAINING = TrainingConfig(learning_rate=1e-2, max_grad_norm=0)
PROBE = list(range(40, 72))


@pytest.fixture
def peer(tinker_model: Path) -> Iterator[TinkerPeer]:
    with TinkerPeer(tinker_model, api_key=SERVICE_KEY) as peer:
        yield peer


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "key").write_text(SERVICE_KEY)
    return Paths(storage=tmp_path / "storage", scratch=tmp_path, tinker_key=tmp_path / "key")


@pytest.fixture
def reporter() -> Iterator[Reporter]:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    yield Reporter(descriptor)
    os.close(descriptor)


def initial(model: Path, peer: TinkerPeer, **settings: object) -> TrainerInput:
    tinker = TinkerEngineSpec.model_validate({"base_model": peer.model_name, "base_url": peer.url} | settings)
    return TrainerInput(
        adapter=AdapterIdentity(namespace="team", name="coder", uid="adapter-uid", lora_id="user/coder"),
        engine=EngineSpec(tinker=tinker),
        model=ModelLocation(path=str(model)),
        lora=LoraSpec(rank=RANK),
        storage_path="team/coder",
    )


def exporting(folder: Path, model: Path, peer: TinkerPeer) -> Side:
    side = tinker_side(folder, model, peer)
    (folder / "key").write_text(SERVICE_KEY)
    assert side.spec.tinker is not None
    side.spec = EngineSpec(tinker=side.spec.tinker.model_copy(update={"export": True}))
    return side


def by_peer(peer: TinkerPeer, version: StoredVersion) -> torch.Tensor:
    """Log-probability of each token of the probe after the first, by the version's checkpoint."""
    path = TinkerVersion.read(version.folder).sampler_path
    lora = None if path is None else peer.checkpoints.get(path, "sampler").snapshot.lora
    with torch.no_grad():
        return _of_probe(peer.model.logits(PROBE, lora))


def by_peft(model: Path, version: StoredVersion) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        return _of_probe(PeftModel.from_pretrained(base, version.folder)(torch.tensor([PROBE])).logits[0])


def _of_probe(logits: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1)[:-1].gather(-1, torch.tensor(PROBE[1:])[:, None])[:, 0]


@pytest.mark.parametrize("export", [False, True])
def test_version_0_is_the_base_model_and_costs_nothing(
    tinker_model: Path, peer: TinkerPeer, paths: Paths, reporter: Reporter, export: bool
) -> None:
    result = initialise(initial(tinker_model, peer, export=export), paths, reporter)
    assert result.version is not None
    assert {call.operation for call in peer.calls} & BILLED == {Operation.CAPABILITIES}
    assert not peer.called(Operation.CREATE_SESSION)
    version = VersionStore(paths.storage / "team" / "coder").read(0)
    assert version.record.engine == "tinker"
    assert version.record.state is None
    made = TinkerVersion.read(version.folder)
    assert made == TinkerVersion(base_model=peer.model_name, rank=RANK, seed=initial_seed("user/coder"))
    files = {"tinker.json", *(["adapter_config.json", "adapter_model.safetensors"] if export else [])}
    assert version.record.files.keys() == files
    if export:
        assert torch.equal(by_peft(tinker_model, version), by_peer(peer, version))


@pytest.mark.parametrize(
    ("key", "retired", "settings", "reason", "said"),
    [
        ("tml-wrong", False, {}, FailureReason.CREDENTIALS_REFUSED, "apiKeySecretRef"),
        (SERVICE_KEY, True, {}, FailureReason.MODEL_RETIRED, "peer/tiny-qwen3"),
        (SERVICE_KEY, False, {"base_model": "other"}, FailureReason.MODEL_RETIRED, "base model other"),
        ("", False, {}, FailureReason.CREDENTIALS_REFUSED, "holds no key"),
    ],
)
def test_version_0_is_not_made_of_what_the_service_does_not_train(
    tinker_model: Path,
    peer: TinkerPeer,
    paths: Paths,
    reporter: Reporter,
    key: str,
    retired: bool,
    settings: dict[str, str],
    reason: FailureReason,
    said: str,
) -> None:
    paths.tinker_key.write_text(key)
    if retired:
        peer.offer(peer.model_name, trainable=False)
    with pytest.raises(TrainerError, match=said) as caught:
        initialise(initial(tinker_model, peer, **settings), paths, reporter)
    assert caught.value.reason is reason
    assert VersionStore(paths.storage / "team" / "coder").numbers() == []
    assert not key or key not in caught.value.message


async def test_versions_of_steps_have_the_adapter_with_the_alpha_of_the_service(
    tinker_model: Path, peer: TinkerPeer, tmp_path: Path
) -> None:
    side = exporting(tmp_path / "adapter", tinker_model, peer)
    versions = [await side.step(samples(seed, recorded=False), TRAINING) for seed in (1, 2)]
    for version in versions:
        side.store.verify(version)
        assert f'"lora_alpha": {ALPHA}' in (version.folder / "adapter_config.json").read_text()
        assert (by_peft(tinker_model, version) - by_peer(peer, version)).abs().max() < 1e-4
    assert (by_peer(peer, versions[1]) - by_peer(peer, versions[0])).abs().max() > 1e-3
    # What was exported is needed no more once it is downloaded.
    exported = [one for one in peer.checkpoints.list() if one.kind == "external"]
    assert len(exported) == 2
    assert all(one.expires is not None for one in exported)
    assert all(one.expires is None for one in peer.checkpoints.list() if one.kind != "external")


async def test_files_begin_with_the_version_after_export_is_switched_on(
    tinker_model: Path, peer: TinkerPeer, tmp_path: Path
) -> None:
    side = exporting(tmp_path / "adapter", tinker_model, peer)
    export, side.spec = side.spec, EngineSpec(tinker=TinkerEngineSpec(base_model=peer.model_name, base_url=peer.url))
    before = await side.step(samples(1, recorded=False), TRAINING)
    assert before.record.files.keys() == {"tinker.json"}
    side.spec = export
    after = await side.step(samples(2, recorded=False), TRAINING)
    assert (by_peft(tinker_model, after) - by_peer(peer, after)).abs().max() < 1e-4


@pytest.mark.parametrize("at", [Operation.SAVE_EXTERNAL, Operation.EXTERNAL_URLS, Operation.EXTERNAL_FILE])
async def test_a_step_whose_export_failed_is_not_published_half_and_whole_by_the_next_attempt(
    tinker_model: Path, peer: TinkerPeer, tmp_path: Path, at: Operation
) -> None:
    side = exporting(tmp_path / "adapter", tinker_model, peer)
    peer.fail(at, Answer(400 if at is not Operation.EXTERNAL_FILE else 403))
    with pytest.raises(TrainerError):
        await side.step(samples(1, recorded=False), TRAINING)
    assert side.store.numbers() == [0]
    assert not [path for path in side.store.versions.iterdir() if path.name.startswith(".")]
    peer.clear_failures()
    version = await side.step(samples(1, recorded=False), TRAINING)
    assert len(peer.called(Operation.OPTIM_STEP)) == 1
    assert (by_peft(tinker_model, version) - by_peer(peer, version)).abs().max() < 1e-4


async def test_a_vllm_answers_with_the_exported_adapter_as_the_service_does(site: Site, tmp_path: Path) -> None:
    with TinkerPeer(site.server.model, api_key=SERVICE_KEY) as peer:
        side = exporting(tmp_path / "adapter", site.server.model, peer)
        paths = Paths(storage=tmp_path, scratch=tmp_path, tinker_key=tmp_path / "adapter" / "key")
        descriptor = os.open(os.devnull, os.O_WRONLY)
        first = initial(site.server.model, peer, export=True).model_copy(update={"storage_path": "initial"})
        initialise(first, paths, Reporter(descriptor))
        os.close(descriptor)
        zero = VersionStore(tmp_path / "initial").read(0)
        one = await side.step(samples(1, recorded=False), TRAINING)
        two = await side.step(samples(2, recorded=False), TRAINING)
        base = by_vllm(site, BASE_MODEL)
        for version in (zero, one, two):
            name = f"exported@{version.record.number}"
            control(site, "load_lora_adapter", {"lora_name": name, "lora_path": str(version.folder)})
            try:
                answered = by_vllm(site, name)
            finally:
                control(site, "unload_lora_adapter", {"lora_name": name})
            assert (answered - by_peer(peer, version)).abs().max() < 1e-3
            assert ((answered - base).abs().max() > 1e-2) == (version is not zero)


def control(site: Site, route: str, body: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}", "X-Claas-Token": TOKEN}
    httpx.post(f"{site.server.url}/v1/{route}", json=body, headers=headers, timeout=60.0).raise_for_status()


def by_vllm(site: Site, model: str) -> torch.Tensor:
    answer = httpx.post(
        f"{site.server.url}/v1/completions",
        json={"model": model, "prompt": PROBE, "max_tokens": 1, "prompt_logprobs": 1},
        headers={"Authorization": f"Bearer {API_KEY}"},
        timeout=60.0,
    ).raise_for_status()
    told: Sequence[dict[str, dict[str, float]]] = answer.json()["choices"][0]["prompt_logprobs"][1:]
    return torch.tensor([places[str(token)]["logprob"] for places, token in zip(told, PROBE[1:], strict=True)])
