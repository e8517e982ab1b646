"""The companion's logger, below vLLM's, so that vLLM's settings hold for it."""

import logging

logger = logging.getLogger("vllm.claas_companion")
