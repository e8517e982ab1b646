"""What holds for all tiers."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Times of examples say more about the machine's other work than about the code; pytest bounds the whole test.
# A change is judged by examples that are the same each time; new ones are looked for wherever else the tests run.
settings.register_profile(
    "claas", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("claas")
