"""The companion's logger, a child of vLLM's, so that vLLM's settings apply."""

import logging

logger = logging.getLogger("vllm.claas_companion")
