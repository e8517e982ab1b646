"""The step teaches: on a model that can be taught, unhinted answers take up what feedback asked for.

Plain transformers sampling stands in for the server; each round goes through the adapter's published
tensors and the stored optimiser state, as one job after another does. The bars are those that the model's
recipe is known to clear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from claas_trainer.forward.peft_model import attached, load_base
from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.model.config_shape import read_shape
from claas_trainer.model.lora import AdapterWeights, LoraShape, new_adapter
from claas_trainer.samples.hindsight import conversation, teacher_conversation
from claas_trainer.sdpo.batch import TokenSample
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.policy import PolicyModel
from claas_trainer.sdpo.settings import SdpoConfig
from claas_trainer.sdpo.step import SdpoResult, sdpo_step
from claas_trainer.sdpo.teachers.average import AverageTeacher
from claas_trainer.sdpo.teachers.base import Teacher
from claas_trainer.sdpo.teachers.frozen import FrozenTeacher
from claas_trainer.sdpo.teachers.trust_region import TrustRegionTeacher
from tests.tiny_model.build import ensure
from tests.tiny_model.sampling import Score, generate, prompt_ids, score
from tests.tiny_model.tasks import Preference, feedback, neutral_feedback, questions

pytestmark = pytest.mark.contract

BATCH = 16
JUDGED = 96
CONFIG = SdpoConfig(learning_rate=5e-3, alpha=0.5, teacher_top_k=20, weight_decay=0.0, max_grad_norm=1.0)


@dataclass(frozen=True)
class TinyModel:
    folder: Path
    base: PreTrainedModel
    weights: HostWeights
    tokenizer: PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tiny() -> Iterator[TinyModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = ensure()
    shape = read_shape(folder)
    yield TinyModel(
        folder,
        load_base(folder, torch.float32),
        HostWeights.read(folder, shape, torch.device("cpu"), torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    torch.set_num_threads(threads)


class Learner:
    """An adapter that is asked, told what was wrong, and taught, round after round. `own`: its steps are computed by
    the forward of our own, and not by PEFT's."""

    def __init__(
        self, tiny: TinyModel, config: SdpoConfig = CONFIG, teacher: Teacher | None = None, *, own: bool = False
    ) -> None:
        torch.manual_seed(0)
        self._tiny = tiny
        self._config = config
        self._teacher = teacher or FrozenTeacher()
        self._own = own
        self._adapter = new_adapter(tiny.folder, LoraShape(rank=8, alpha=16), seed=0)
        self._stored: dict[str, Tensor] = {}
        self._done = 0

    def teach(self, wanted: Callable[[int], Sequence[str]]) -> SdpoResult:
        """One round: fresh questions, sampled answers, one feedback to each, one step."""
        tokenizer = self._tiny.tokenizer
        asked = [conversation(question.text) for question in questions(BATCH, seed=100 + self._done)]
        with attached(self._tiny.base, self._adapter) as model:
            answers = generate(model.peft, tokenizer, asked, sample=True)
            samples = [
                TokenSample(
                    student_prompt_ids=tuple(answer.prompt_ids),
                    teacher_prompt_ids=tuple(prompt_ids(teacher_conversation(messages, said), tokenizer)),
                    response_ids=tuple(answer.response_ids),
                )
                for messages, answer, said in zip(asked, answers, wanted(self._done), strict=True)
            ]
            result = self._step(self._decoder() if self._own else model, samples)
        self._stored = result.state.to_tensors()
        self._adapter = AdapterWeights(self._adapter.shape, result.state.masters)
        self._done += 1
        return result

    def _decoder(self) -> DecoderModel:
        shape, tensors = self._adapter.shape, self._adapter.tensors
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        return DecoderModel(self._tiny.weights, shapes, shape.rank, shape.alpha)

    def _step(self, model: PolicyModel, samples: Sequence[TokenSample]) -> SdpoResult:
        if self._stored:
            state = OptimizerState.from_tensors(self._stored, model.layout)
        else:
            state = OptimizerState.fresh(self._adapter.tensors, model.layout)
        return sdpo_step(model, samples, self._config, state, self._teacher)

    def judge(self, preference: Preference, *, sample: bool) -> Score:
        """Unhinted answers to questions that no round asked in this order."""
        with attached(self._tiny.base, self._adapter) as model:
            asked = questions(JUDGED, seed=999)
            return score(model.peft, self._tiny.tokenizer, asked, preference, sample=sample)


@pytest.mark.parametrize(
    ("teacher", "own"),
    [(FrozenTeacher(), True), (AverageTeacher(), False), (TrustRegionTeacher(), True)],
    ids=["frozen", "average", "trust-region"],
)
def test_feedback_against_emojis_ends_emojis_and_keeps_the_facts(
    tiny: TinyModel, teacher: Teacher, own: bool
) -> None:
    learner = Learner(tiny, teacher=teacher, own=own)
    before = learner.judge(Preference.NO_EMOJI, sample=False)
    sampled_before = learner.judge(Preference.NO_EMOJI, sample=True)
    assert before.compliance <= 0.1
    assert sampled_before.compliance <= 0.5
    for step in range(10):
        learner.teach(lambda seed: feedback(Preference.NO_EMOJI, BATCH, seed))
        if step == 5:
            by_six = learner.judge(Preference.NO_EMOJI, sample=False)
            assert by_six.compliance >= 0.9
    after, sampled = learner.judge(Preference.NO_EMOJI, sample=False), learner.judge(Preference.NO_EMOJI, sample=True)
    assert after.compliance >= 0.9
    assert after.content >= 0.9
    assert sampled.compliance >= 0.9
    assert sampled.content >= 0.9


def test_neutral_feedback_moves_nothing(tiny: TinyModel) -> None:
    learner = Learner(tiny)
    before = learner.judge(Preference.NO_EMOJI, sample=True)
    moved = sum(learner.teach(lambda seed: neutral_feedback(BATCH, seed)).metrics.kl_to_parent for _ in range(10))
    greedy, sampled = (learner.judge(Preference.NO_EMOJI, sample=sample) for sample in (False, True))
    assert greedy.compliance <= 0.1
    assert abs(sampled.compliance - before.compliance) <= 0.2
    assert sampled.content >= 0.9
    assert moved < 0.05


def test_the_pirate_appears_at_alpha_0_where_the_teachers_mass_counts(tiny: TinyModel) -> None:
    """A style that the student never shows: only the forward KL, alpha 0 exactly, can bring it."""
    learner = Learner(tiny, dataclasses.replace(CONFIG, alpha=0.0), own=True)
    assert learner.judge(Preference.PIRATE, sample=True).compliance == 0
    for _ in range(10):
        learner.teach(lambda seed: feedback(Preference.PIRATE, BATCH, seed))
    after = learner.judge(Preference.PIRATE, sample=True)
    assert after.compliance >= 0.7
    assert after.content >= 0.9
