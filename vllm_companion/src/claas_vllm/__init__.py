"""An ASGI middleware inside vLLM's API server: served names, a lock on control routes, and a memory for both.

Mounted into a stock vLLM image and named by `--middleware claas_vllm.Companion`; needs the standard library
alone. vLLM's runtime LoRA loading allows one API server process (`--api-server-count 1`), and so does this.
`--worker-extension-cls claas_vllm.WeightExport` lets a trainer map the weights that the workers hold.

- Served names: each adapter version is loaded under its own name (`coder@7`); an alias (`coder`) says which of
  them answers. JSON requests whose `model` is an alias are handed on with the target's name, and are answered
  to the end by the version they began with. A target that lost its alias is unloaded when nothing uses it.
- The lock: every route that is not known to be a client's needs the header `X-Claas-Token`.
- Answers say the alias in `model`, and `/v1/models` leaves out the targets; operator and trainer see them at
  `/claas/models`. `/claas/status` also says how the server was started.
- Restart: the alias table lies on a volume; at start each target is loaded and its alias put back before the
  server accepts a request.
- Sleep: with `--enable-sleep-mode` the server sleeps once before it accepts a request, because the first sleep
  takes ten seconds more than later ones.
- The end: a server whose engine has been dead for ten seconds is ended.

Environment: CLAAS_TOKEN_FILE (file with the control token), CLAAS_LOCK=off (no lock), CLAAS_ALIAS_DIR (folder
of the alias table), CLAAS_OPEN_PATHS (comma-separated further paths that need no token: routes of plugins).

Nothing of a request's body is logged or put into an error. Every module is imported here, at the start: the
mounted files may change under a running server.
"""

from claas_vllm.companion import Companion
from claas_vllm.weight_export import WeightExport

__all__ = ["Companion", "WeightExport"]
