"""Errors of the operator.

OperatorError
├── ServerError         a vLLM server could not be asked or told
│   └── NotAppliedError has a version loaded, and the base answers in its place
└── SettingsError       the operator's own configuration is wrong
"""

from __future__ import annotations


class OperatorError(Exception):
    """Base of all errors of the operator."""


class ServerError(OperatorError):
    """A request to a vLLM server failed."""


class NotAppliedError(ServerError):
    """A vLLM server has loaded a version but answers as the base model does."""


class SettingsError(OperatorError):
    """The operator's own configuration is wrong; it does not start."""
