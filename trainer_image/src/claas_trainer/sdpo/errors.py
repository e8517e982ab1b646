"""The exception tree of a training step. No message quotes a sample."""

from __future__ import annotations


class SdpoError(Exception):
    """A step failed; nothing may be published after it."""


class InvalidBatchError(SdpoError):
    """A sample can't be trained on; the message names the sample and the field."""


class InvalidConfigError(SdpoError):
    """A setting of the step is outside its range; the message names the field."""


class HindsightError(SdpoError):
    """The teacher's prompt can't be made from this conversation."""


class OptimizerStateError(SdpoError):
    """A stored optimiser state does not belong to the adapter it is restored into."""


class AdapterError(SdpoError):
    """The adapter can't be attached to, or removed from, the base model."""


class NonFiniteError(SdpoError):
    """A loss or a gradient is NaN or infinite."""


class UnsupportedModelError(SdpoError):
    """The trainer's own forward can't compute this model; the generic one may."""


class WeightsError(SdpoError):
    """The base model's files are missing, broken, or do not fit its configuration."""


class MappingError(SdpoError):
    """The server's memory, which the step needs, can't be mapped; usually the server has ended."""


class PolicyMovedError(SdpoError):
    """The step moved the policy further from its parent than the configuration allows."""
