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
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from claas_trainer.batch import StepSample
from claas_trainer.lora import LoraAdapter, LoraShape, new_adapter
from claas_trainer.peft_model import attached, load_base
from claas_trainer.optimizer import OptimizerState
from claas_trainer.step import StepConfig, StepResult, sdpo_step
from claas_trainer.teachers.hindsight import conversation, teacher_conversation
from tests.tiny_model.build import ensure
from tests.tiny_model.sampling import Score, generate, prompt_ids, score
from tests.tiny_model.tasks import Preference, feedback, neutral_feedback, questions

pytestmark = pytest.mark.contract

BATCH = 16
JUDGED = 96
CONFIG = StepConfig(
    learning_rate=5e-3, alpha=0.5, teacher_top_k=20, weight_decay=0.0, micro_batch_size=BATCH, max_grad_norm=1.0
)


@dataclass(frozen=True)
class TinyModel:
    folder: Path
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tiny() -> Iterator[TinyModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = ensure()
    yield TinyModel(folder, load_base(folder, torch.float32), AutoTokenizer.from_pretrained(folder))
    torch.set_num_threads(threads)


class Learner:
    """An adapter that is asked, told what was wrong, and taught, round after round."""

    def __init__(self, tiny: TinyModel, config: StepConfig = CONFIG) -> None:
        torch.manual_seed(0)
        self._tiny = tiny
        self._config = config
        self._adapter = new_adapter(tiny.folder, LoraShape(rank=8, alpha=16), seed=0)
        self._state: OptimizerState | None = None

    def teach(self, wanted: Callable[[int], Sequence[str]]) -> StepResult:
        """One round: fresh questions, sampled answers, one feedback to each, one step."""
        tokenizer = self._tiny.tokenizer
        done = 0 if self._state is None else self._state.step
        asked = [conversation(question.text) for question in questions(BATCH, seed=100 + done)]
        with attached(self._tiny.base, self._adapter) as model:
            answers = generate(model.peft, tokenizer, asked, sample=True)
            samples = [
                StepSample(
                    student_prompt_ids=tuple(answer.prompt_ids),
                    teacher_prompt_ids=tuple(prompt_ids(teacher_conversation(messages, said), tokenizer)),
                    response_ids=tuple(answer.response_ids),
                )
                for messages, answer, said in zip(asked, answers, wanted(done), strict=True)
            ]
            result = sdpo_step(model, samples, self._config, self._state)
        self._state = OptimizerState.from_tensors(result.state.to_tensors())
        self._adapter = LoraAdapter(self._adapter.shape, result.state.masters)
        return result

    def judge(self, preference: Preference, *, sample: bool) -> Score:
        """Unhinted answers to questions that no round asked in this order."""
        with attached(self._tiny.base, self._adapter) as model:
            asked = questions(JUDGED, seed=999)
            return score(model.peft, self._tiny.tokenizer, asked, preference, sample=sample)


def test_feedback_against_emojis_ends_emojis_and_keeps_the_facts(tiny: TinyModel) -> None:
    learner = Learner(tiny)
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
    learner = Learner(tiny, dataclasses.replace(CONFIG, alpha=0.0))
    assert learner.judge(Preference.PIRATE, sample=True).compliance == 0
    for _ in range(10):
        learner.teach(lambda seed: feedback(Preference.PIRATE, BATCH, seed))
    after = learner.judge(Preference.PIRATE, sample=True)
    assert after.compliance >= 0.7
    assert after.content >= 0.9
