"""What holds for all tiers."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Times of examples say more about the machine's other work than about the code; pytest bounds the whole test.
settings.register_profile("claas", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("claas")
