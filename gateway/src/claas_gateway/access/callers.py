"""Who makes a request, by its API key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request, and what they may see and use.

    A namespace is a tenant: no key sees what belongs to another namespace.
    """

    key_name: str
    """Name of the key, for logs, metrics and records; never the key. Empty when keys are off."""
    namespace: str | None
    """The namespace that the key belongs to; None when keys are off: all namespaces that the gateway looks after."""
    adapter: str | None = None
    """The only LoraAdapter that the key allows; None: all of the namespace, and its base models."""

    def sees(self, namespace: str, adapter: str | None) -> bool:
        """Whether an adapter of a namespace is visible; `adapter` None means what belongs to base models."""
        if self.namespace is not None and namespace != self.namespace:
            return False
        return self.adapter is None or adapter == self.adapter


EVERYTHING = Caller(key_name="", namespace=None)
"""Everybody, when keys are off."""
