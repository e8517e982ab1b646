"""The work of a step: its samples, and the floating-point operations that no implementation can leave out."""

from __future__ import annotations

import random
from dataclasses import dataclass

from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.batch import TokenSample


@dataclass(frozen=True)
class Work:
    """`samples` answers of `response` tokens, after prompts of `prompt` tokens, `feedback` more for the teacher."""

    samples: int
    prompt: int
    feedback: int
    response: int
    ragged: bool = False
    """Whether lengths vary, from a half to one and a half times these."""

    @property
    def tokens(self) -> int:
        """Tokens that go through the model: the student's and the teacher's."""
        return self.samples * (2 * self.prompt + self.feedback + 2 * self.response)

    def made(self, vocabulary: int, seed: int = 0) -> list[TokenSample]:
        """Samples of random tokens."""
        draw = random.Random(seed)

        def ids(count: int) -> tuple[int, ...]:
            return tuple(draw.choices(range(vocabulary), k=count))

        made = []
        for index in range(self.samples):
            share = 0.5 + index / max(1, self.samples - 1) if self.ragged else 1.0
            prompt, feedback, response = (round(x * share) for x in (self.prompt, self.feedback, self.response))
            made.append(TokenSample(ids(prompt), ids(prompt + feedback), ids(response)))
        return made


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a step, a product and its sum counted as two."""

    student_forward: float
    student_backward: float
    teacher_forward: float

    @property
    def floor(self) -> float:
        """With nothing computed twice."""
        return self.student_forward + self.student_backward + self.teacher_forward

    @property
    def checkpointed(self) -> float:
        """With the student's whole forward computed twice."""
        return self.floor + self.student_forward


def operations(shape: ModelShape, work: Work, adapter_elements: int) -> Operations:
    """Every matrix product of every token in every layer, the head on response tokens, attention causal. The base's
    weights get no gradient, the adapter's do."""
    core = 2.0 * shape.layers * shape.layer_elements
    student, teacher = work.prompt + work.response, work.prompt + work.feedback + work.response
    head = 2.0 * shape.head_elements * work.samples * work.response
    adapter = 2.0 * adapter_elements * work.samples * student

    def attention(length: int) -> float:
        return 2.0 * work.samples * shape.layers * length * length * shape.query_width

    forward = core * work.samples * student + head + attention(student)
    return Operations(
        student_forward=forward + adapter,
        student_backward=core * work.samples * student + head + 2.5 * attention(student) + 2 * adapter,
        teacher_forward=core * work.samples * teacher + head + attention(teacher),
    )
