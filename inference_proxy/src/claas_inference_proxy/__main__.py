"""`python -m claas_inference_proxy`: serve until ended."""

from __future__ import annotations

import logging
import os
import sys

import uvicorn

from claas_inference_proxy.app import build_proxy
from claas_inference_proxy.errors import ProxyError
from claas_inference_proxy.prompts.tokenizer import read_tokenizer
from claas_inference_proxy.settings import read_settings

_EXIT_CONFIGURATION = 78
"""sysexits.h: something is wrong with the configuration."""
SHUTDOWN_SECONDS = 100
"""How long answers that are under way are waited for; the pod has 120 s in all."""


def main() -> int:
    """Run the server; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Its errors quote what the service said, which may be a client's text; they are raised besides.
    logging.getLogger("tinker").setLevel(logging.CRITICAL)
    try:
        settings = read_settings(os.environ)
        tokenizer = read_tokenizer(settings.model, revision=settings.revision)
    except ProxyError as error:
        logging.getLogger(__name__).error("%s", error)
        return _EXIT_CONFIGURATION
    uvicorn.run(
        build_proxy(settings, tokenizer),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
