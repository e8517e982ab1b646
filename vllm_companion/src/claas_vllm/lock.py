"""The lock on control routes: the list of client routes, and the check of the token."""

import hmac
import re
from collections.abc import Iterable
from pathlib import Path
from posixpath import normpath

from claas_vllm.asgi import Headers, Scope
from claas_vllm.log import logger

# Client routes of vLLM 0.32 and 0.33. Any route on neither list and below no listed tree is locked, so control routes
# of later releases are locked too.
OPEN_ROUTES = frozenset(
    {
        "/health", "/ping", "/version", "/load", "/kv_event_sources", "/tokenize", "/detokenize", "/tokenizer_info",
        "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/invocations", "/pooling", "/classify",
        "/score", "/rerank", "/generative_scoring", "/inference/v1/generate", "/v2/embed", "/v2/rerank",
    }
)  # fmt: skip
OPEN_TREES = (
    "/metrics", "/static", "/cohere/v2/chat", "/v1/audio", "/v1/chat", "/v1/completions", "/v1/decisions",
    "/v1/embeddings", "/v1/messages", "/v1/models", "/v1/realtime", "/v1/rerank", "/v1/responses", "/v1/score",
    "/v1/systemone",
)  # fmt: skip
# Control routes of vLLM 0.32 and 0.33; CLAAS_OPEN_PATHS can't open them.
CONTROL_TREES = (
    "/abort_requests", "/adapters", "/claas", "/collective_rpc", "/fault_tolerance", "/finish_weight_update",
    "/get_world_size", "/inference/v1/abort_requests", "/init_weight_transfer_engine", "/is_paused",
    "/is_scaling_elastic_ep", "/is_sleeping", "/pause", "/release_kv_cache_memory", "/reset_encoder_cache",
    "/reset_mm_cache", "/reset_prefix_cache", "/resume", "/scale_elastic_ep", "/server_info",
    "/shutdown_weight_transfer_engine", "/sleep", "/start_draft_weight_update", "/start_profile",
    "/start_weight_update", "/stop_profile", "/update_weight_version", "/update_weights",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/wake_up", "/weight_checker", "/weight_info",
)  # fmt: skip


def route_path(scope: Scope) -> str:
    """The path that vLLM's router matches: the decoded path without the root path, as Starlette computes it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def needs_token(path: str, extra_open: tuple[str, ...] = ()) -> bool:
    """Whether a route path (`route_path`) is locked. Known client routes in plain spelling are not."""
    plain = path[:-1] if path.endswith("/") else path
    # The router matches paths literally. A path that some rewriting could change (//, .., a percent sign that
    # survived decoding, a backslash) is not a client route, so it is locked.
    if not re.fullmatch(r"(/[A-Za-z0-9._~:@+-]+)+", plain) or normpath(plain) != plain:
        return True
    if _below(plain, CONTROL_TREES):
        return True
    return plain not in OPEN_ROUTES and not _below(plain, OPEN_TREES) and not _below(plain, extra_open)


def _below(path: str, trees: Iterable[str]) -> bool:
    return any(path == tree or path.startswith(f"{tree}/") for tree in trees)


class ControlLock:
    """Compares the header X-Claas-Token with the content of the token file, in constant time."""

    def __init__(self, token_file: Path | None) -> None:
        self._token_file = token_file

    def opens(self, headers: Headers) -> bool:
        """Whether these headers carry the token. Reads the file each time, because Secrets can be rotated."""
        if self._token_file is None:
            return True
        given = [value for name, value in headers if name.lower() == b"x-claas-token"]
        try:
            token = self._token_file.read_bytes().strip()
        except OSError as error:
            logger.error("The control token can't be read from %s (%s); all is locked", self._token_file, error)
            return False
        if not re.fullmatch(rb"[\x20-\x7e]+", token):
            # No header can carry such a token: clients would fail before they send anything.
            what = "is empty" if not token else "has a line break or other bytes that no header can have"
            logger.error("The control token in %s %s; all is locked", self._token_file, what)
            return False
        return len(given) == 1 and hmac.compare_digest(given[0].strip(), token)
