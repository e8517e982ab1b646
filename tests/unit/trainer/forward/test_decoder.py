"""The forward and backward of our own against the generic path, and against itself however it is cut into pieces."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from claas_trainer.forward.peft_model import load_base
from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.model.lora import AdapterWeights
from claas_trainer.sdpo.batch import TokenBatch, TokenSample
from claas_trainer.sdpo.errors import AdapterError, UnsupportedModelError
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.policy import Network
from claas_trainer.sdpo.settings import Schedule, SdpoConfig
from claas_trainer.sdpo.step import sdpo_step
from tests.unit.trainer.core.models import (
    CPU,
    KINDS,
    VOCABULARY,
    build,
    decoder,
    decoder_way,
    gradient,
    host_weights,
    learned,
    off,
    peft_way,
    shape_of,
    step,
)

CONFIG = SdpoConfig(learning_rate=1e-3, teacher_top_k=10, max_grad_norm=0, kl_reg_weight=0.1)
SMALL = Schedule(micro_batch_tokens=40, tile_rows=3)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: build(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def assert_same_step(folder: Path, adapter: AdapterWeights, samples: list[TokenSample]) -> None:
    generic = step(peft_way(load_base(folder, torch.float32)), adapter, samples, CONFIG)
    ours = step(decoder_way(host_weights(folder)), adapter, samples, CONFIG)
    for name in ("loss", "divergence", "ratio_mean", "kl_to_base"):
        assert getattr(ours.metrics, name) == pytest.approx(getattr(generic.metrics, name), rel=1e-5), name
    assert ours.metrics.kl_to_parent == pytest.approx(generic.metrics.kl_to_parent, rel=1e-3)
    assert off(gradient(ours, CONFIG), gradient(generic, CONFIG)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_the_generic_path(
    kind: str, folders: dict[str, Path], samples: list[TokenSample]
) -> None:
    assert_same_step(folders[kind], learned(folders[kind]), samples)


@pytest.mark.parametrize(
    "targets",
    [("q_proj", "v_proj"), ("gate_proj",), ("k_proj", "o_proj"), ("up_proj", "down_proj"), ("v_proj", "down_proj")],
    ids=" ".join,
)
def test_an_adapter_may_be_on_some_of_the_linear_layers(
    targets: tuple[str, ...], folders: dict[str, Path], samples: list[TokenSample]
) -> None:
    assert_same_step(folders["qwen3"], learned(folders["qwen3"], targets), samples)


def test_one_rank_and_another_scaling_are_as_good(folders: dict[str, Path], samples: list[TokenSample]) -> None:
    assert_same_step(folders["qwen2"], learned(folders["qwen2"], rank=1), samples)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
def test_checkpointed_layers_change_not_a_bit(
    kind: str, folders: dict[str, Path], samples: list[TokenSample]
) -> None:
    adapter, weights = learned(folders[kind]), host_weights(folders[kind])
    found = [
        step(decoder_way(weights, checkpointed_layers=layers), adapter, samples, CONFIG, schedule=SMALL)
        for layers in (0, 1, 2)
    ]
    for other in found[1:]:
        assert other.metrics == found[0].metrics
        assert torch.equal(gradient(other, CONFIG), gradient(found[0], CONFIG))


def test_a_checkpointed_layer_keeps_its_input_alone(folders: dict[str, Path], samples: list[TokenSample]) -> None:
    """What autograd would keep for the way back; here what stays alive between forward and backward."""
    adapter, weights = learned(folders["qwen3"]), host_weights(folders["qwen3"])
    kept = []
    for layers in (0, 1, 2):
        model = decoder(weights, adapter, checkpointed_layers=layers)
        placed(model, adapter)
        _, backwards = model.forward_keeping(batch_of(samples))
        kept.append([back._kept is not None for back in backwards])
    assert kept == [[True, True], [False, True], [False, False]]


def placed(model: DecoderModel, adapter: AdapterWeights) -> DecoderModel:
    model.place(model.layout.gather(adapter.tensors))
    model.refresh()
    return model


def batch_of(samples: list[TokenSample]) -> TokenBatch:
    return TokenBatch.of([s.student_prompt_ids for s in samples], [s.response_ids for s in samples], CPU)


def of_lengths(*lengths: int) -> list[TokenSample]:
    """Samples of these lengths in all; half of each is the response."""
    rng = random.Random(7)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(count))

    return [TokenSample(ids(length - length // 2), ids(3), ids(length // 2)) for length in lengths]


@pytest.mark.parametrize(
    "lengths",
    [(6, 6, 6), (4, 9, 17), (6, 6, 9, 9, 9, 4, 6), (2, 30)],
    ids=lambda lengths: "-".join(map(str, lengths)),
)
@pytest.mark.parametrize("network", [Network.STUDENT, Network.BASE])
@pytest.mark.parametrize("kind", ["qwen3", "llama-yarn"])
def test_a_sample_s_features_are_the_same_alone_and_among_others(
    kind: str, network: Network, lengths: tuple[int, ...], folders: dict[str, Path]
) -> None:
    adapter = learned(folders[kind])
    model = placed(decoder(host_weights(folders[kind]), adapter), adapter)
    samples = of_lengths(*lengths)
    alone = [model.features(batch_of([sample]), network) for sample in samples]
    packed = model.features(batch_of(samples), network)
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_features_with_and_without_a_way_back_are_the_same_bits(
    folders: dict[str, Path], samples: list[TokenSample]
) -> None:
    adapter = learned(folders["qwen3"])
    for layers in (0, 2):
        model = placed(decoder(host_weights(folders["qwen3"]), adapter, layers), adapter)
        batch = batch_of(samples)
        assert torch.equal(model.student(batch).features, model.features(batch, Network.STUDENT))


def test_each_network_has_its_own_adapter(folders: dict[str, Path], samples: list[TokenSample]) -> None:
    adapter, weights = learned(folders["qwen3"]), host_weights(folders["qwen3"])
    halved = AdapterWeights(adapter.shape, {name: tensor / 2 for name, tensor in adapter.tensors.items()})
    none = AdapterWeights(adapter.shape, {name: torch.zeros_like(tensor) for name, tensor in adapter.tensors.items()})
    model, batch = decoder(weights, adapter), batch_of(samples)
    model.place(model.layout.gather(adapter.tensors))
    model.refresh(model.layout.gather(halved.tensors))
    for network, meant in ((Network.STUDENT, adapter), (Network.AVERAGE, halved), (Network.BASE, none)):
        alone = placed(decoder(weights, meant), meant).features(batch, Network.STUDENT)
        torch.testing.assert_close(model.features(batch, network), alone, rtol=1e-6, atol=1e-6)


def rounded(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The generic path in float32, on weights that were rounded."""
    base = load_base(folder, torch.float32)
    with torch.no_grad():
        for tensor in base.parameters():
            tensor.copy_(tensor.to(dtype))
    return base


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_with_packing_tiles_and_checkpoints_the_gradient_is_float32_s(kind: str, tmp_path: Path) -> None:
    """Against plain float32 autograd on the same rounded weights, one sample at a time."""
    folder = build(kind, tmp_path, initializer_range=0.05, hidden_size=64, intermediate_size=128, num_hidden_layers=3)
    adapter, samples = learned(folder, spread=0.05), of_lengths(12, 20, 20, 9, 31, 16, 24)
    exact = step(peft_way(rounded(folder, torch.bfloat16)), adapter, samples, CONFIG, schedule=Schedule(1, 10_000))
    way = decoder_way(host_weights(folder, torch.bfloat16), checkpointed_layers=1)
    ours = step(way, adapter, samples, CONFIG, schedule=Schedule(80, 7))
    found, wanted = gradient(ours, CONFIG), gradient(exact, CONFIG)
    assert torch.cosine_similarity(found, wanted, dim=0) >= 0.999
    assert ours.metrics.loss == pytest.approx(exact.metrics.loss, rel=0.02)
    assert found.dtype is torch.float32


def test_over_a_bfloat16_base_features_are_bfloat16_and_logits_float32(
    folders: dict[str, Path], samples: list[TokenSample]
) -> None:
    adapter, weights = learned(folders["qwen3"]), host_weights(folders["qwen3"], torch.bfloat16)
    model = placed(decoder(weights, adapter), adapter)
    features = model.features(batch_of(samples), Network.STUDENT)
    assert features.dtype is torch.bfloat16
    logits = model.logits(features)
    assert logits.dtype is torch.float32
    # Of bfloat16 features and weights, yet with float32's digits.
    exact = features.double() @ weights.head.double().t()
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> tuple[HostWeights, dict[str, torch.Size]]:
    folder = build("qwen3", tmp_path_factory.mktemp("narrow"), num_hidden_layers=1)
    return host_weights(folder), {name: tensor.shape for name, tensor in learned(folder).tensors.items()}


_QUERY = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({f"{_QUERY}.lora_A.weight": None}, AdapterError, "q_proj"),
        ({f"{_QUERY}.lora_B.weight": None}, AdapterError, "q_proj"),
        ({f"{_QUERY}.lora_A.weight": (8, 32)}, AdapterError, r"q_proj.lora_A.weight is \(8, 32\)"),
        ({f"{_QUERY}.lora_B.weight": (32, 4)}, AdapterError, r"q_proj.lora_B.weight is \(32, 4\)"),
        (
            {
                _QUERY.replace("0", "1") + ".lora_A.weight": (4, 32),
                _QUERY.replace("0", "1") + ".lora_B.weight": (64, 4),
            },
            AdapterError,
            "layers.1.self_attn",
        ),
        ({"base_model.model.lm_head.lora_A.weight": (4, 32)}, UnsupportedModelError, "lm_head"),
        ({f"{_QUERY}.lora_magnitude_vector": (64,)}, UnsupportedModelError, "magnitude"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_the_name_of_the_tensor(
    narrow: tuple[HostWeights, dict[str, torch.Size]],
    changes: dict[str, tuple[int, ...] | None],
    error: type[Exception],
    said: str,
) -> None:
    weights, shapes = narrow
    for name, shape in changes.items():
        shapes = {key: value for key, value in shapes.items() if key != name}
        if shape is not None:
            shapes[name] = torch.Size(shape)
    with pytest.raises(error, match=said):
        DecoderModel(weights, shapes, rank=4, alpha=8)


@pytest.mark.parametrize("kind", ["mistral"])
def test_within_its_sliding_window_a_model_is_computed_as_one_without(
    kind: str, tmp_path: Path, samples: list[TokenSample]
) -> None:
    folder = build(kind, tmp_path, sliding_window=64)
    assert shape_of(folder).sliding_window == 64
    assert_same_step(folder, learned(folder), samples)


def test_every_row_of_the_last_layer_that_nobody_asks_for_is_left_out(
    folders: dict[str, Path], samples: list[TokenSample]
) -> None:
    adapter = learned(folders["qwen3"])
    model = placed(decoder(host_weights(folders["qwen3"]), adapter), adapter)
    batch = batch_of(samples)
    last, _ = model.forward_keeping(batch)
    assert len(last) == len(batch.targets) < len(batch.ids)


def test_the_gradient_is_added_up_over_micro_batches_and_starts_from_zero_in_each_step(
    folders: dict[str, Path], samples: list[TokenSample]
) -> None:
    adapter = learned(folders["qwen3"])
    model = decoder(host_weights(folders["qwen3"]), adapter)
    state = OptimizerState.fresh(adapter.tensors, model.layout)
    first = sdpo_step(model, samples, CONFIG, state)
    again = sdpo_step(model, samples, CONFIG, state)
    assert again.metrics == first.metrics
    assert torch.equal(gradient(again, CONFIG), gradient(first, CONFIG))


def gradient_by_differences(model: DecoderModel, batch: TokenBatch, weights: Tensor, tensor: Tensor) -> Tensor:
    """Of sum(features * weights) with respect to some of the adapter's parameters."""
    found = []
    for index in range(4):
        values = []
        for h in (1e-2, -1e-2):
            tensor[index] += h
            model.refresh()
            values.append((model.features(batch, Network.STUDENT) * weights).double().sum())
            tensor[index] -= h
        found.append((values[0] - values[1]) / 2e-2)
    return torch.stack(found)


@pytest.mark.parametrize("module", ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"])
@pytest.mark.parametrize("side", ["A", "B"])
def test_the_way_back_is_that_of_finite_differences(
    module: str, side: str, folders: dict[str, Path], samples: list[TokenSample]
) -> None:
    adapter = learned(folders["llama"])
    model, batch = decoder(host_weights(folders["llama"]), adapter), batch_of(samples)
    parameters = model.place(model.layout.gather(adapter.tensors))
    model.refresh()
    forward = model.student(batch)
    weights = torch.randn(forward.features.shape, generator=torch.Generator().manual_seed(1))
    forward.backward(weights)
    name = f"base_model.model.model.layers.0.{module}.lora_{side}.weight"
    found = parameters.gradients[name].view(-1)[:4].double()
    wanted = gradient_by_differences(model, batch, weights, model.layout.views(parameters.flat)[name].view(-1))
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
