"""An ASGI middleware inside vLLM's API server: served names, a lock on control routes, and persistence across
restarts.

Mounted into a stock vLLM image and named by `--middleware claas_vllm.Companion`; needs only the standard library.
Like vLLM's runtime LoRA loading, it requires a single API server process (`--api-server-count 1`).
`--worker-extension-cls claas_vllm.WeightExport` lets a trainer map the weights that the workers hold.

- Served names: each adapter version is loaded under its own name (`coder@7`); an alias (`coder`) points to one of
  them. JSON requests whose `model` is an alias are passed on with the target's name, and are answered to the end by
  the version they began with. A target without an alias is unloaded when no request uses it.
- The lock: every route that is not a known client route needs the header `X-Claas-Token`.
- Answers have the alias in `model`, and `/v1/models` omits the targets; operator and trainer see them at
  `/claas/models`. `/claas/status` also reports the server's settings.
- Restart: the alias table is on a volume; at start each target is loaded and its alias restored before the server
  accepts a request.
- Sleep: with `--enable-sleep-mode` the server sleeps once before it accepts a request, because the first sleep
  takes ten seconds more than later ones.
- Recording: to a caller with the control token, an answer may carry the token ids that were sampled.
- Engine watch: a server whose engine has been dead for ten seconds is ended.

Environment: CLAAS_TOKEN_FILE (file with the control token), CLAAS_LOCK=off (no lock), CLAAS_ALIAS_DIR (folder
of the alias table), CLAAS_OPEN_PATHS (comma-separated further paths that need no token: routes of plugins).

Request bodies are never logged or quoted in errors. All modules are imported at the start, because the mounted files
may change while the server runs.
"""

from claas_vllm.companion import Companion
from claas_vllm.weight_export import WeightExport

__all__ = ["Companion", "WeightExport"]
