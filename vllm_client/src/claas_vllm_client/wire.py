"""Answers of vLLM and the companion as pydantic models, and the typed values made from them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class PauseMode(StrEnum):
    """How running requests are treated in a pause: frozen, completed first, or aborted."""

    KEEP = "keep"
    WAIT = "wait"
    ABORT = "abort"


class SleepState(StrEnum):
    """vLLM's `vllm:engine_sleep_state`."""

    AWAKE = "awake"
    WEIGHTS_OFFLOADED = "weights_offloaded"
    DISCARD_ALL = "discard_all"


class LoadOutcome(StrEnum):
    """Whether a load changed anything."""

    LOADED = "loaded"
    ALREADY_LOADED = "already_loaded"


class Answer(BaseModel):
    """An answer; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ServedModel(Answer):
    """One entry of `/v1/models`. `root` is the path it was loaded from, `parent` the base model (None for the base
    model itself)."""

    id: str
    root: str | None = None
    parent: str | None = None


class ModelList(Answer):
    data: tuple[ServedModel, ...]


class TokenIds(Answer):
    """Answer of `/tokenize`."""

    tokens: tuple[int, ...]


class RpcResults(Answer):
    """Answers of the workers to `/collective_rpc`."""

    results: tuple[dict[str, JsonValue], ...]


class Alias(Answer):
    """One served name of the companion: requests for `name` go to `target`, version `version` from `path`.

    `in_flight` counts requests by the target that answers them, including older targets. `loaded` is False if the
    target was unloaded without the companion. `probe` is the record of the version's answer to its probe; `verified`
    says whether it has answered accordingly since it was loaded and last woke.
    """

    name: str
    target: str
    path: str
    version: int
    loaded: bool = True
    probe: dict[str, JsonValue] | None = None
    verified: bool = True
    in_flight: dict[str, int] = Field(default_factory=dict)


class ChatSettings(Answer):
    """How the server renders messages to a prompt: `template` is the text of --chat-template (None: the tokenizer's
    default), `template_kwargs` are --default-chat-template-kwargs, which a request can override."""

    template: str | None = None
    template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)


class LoraLimits(Answer):
    """The server's limits for adapters. `enabled` is False without --enable-lora; `target_modules` are those of
    --lora-target-modules, None for all. In other fields None means unknown."""

    enabled: bool
    max_rank: int | None = None
    max_loras: int | None = None
    target_modules: tuple[str, ...] | None = None


class ServerSettings(Answer):
    """Settings of a vLLM server, as vLLM parsed them. None: this release does not report them.

    `worker_extension` is the class of --worker-extension-cls, empty without one. `loads_adapters`: whether the routes
    of VLLM_ALLOW_RUNTIME_LORA_UPDATING exist; `can_pause`: those of VLLM_SERVER_DEV_MODE.
    """

    served_model_names: tuple[str, ...] = ()
    device_type: str | None = None
    sleep_mode: bool | None = None
    worker_extension: str | None = None
    lora: LoraLimits | None = None
    loads_adapters: bool | None = None
    can_pause: bool | None = None
    log_stats: bool | None = None
    root_path: str | None = None
    tls: bool | None = None
    chat: ChatSettings | None = None


class CompanionStatus(Answer):
    """The companion's `/claas/status`. `persisted` is False if a restart would lose the aliases. `settings` is None
    for older companions."""

    companion_version: str
    vllm_version: str | None
    supported_vllm_versions: tuple[str, ...]
    vllm_supported: bool
    aliases: tuple[Alias, ...]
    gpu_uuids: tuple[str, ...]
    persisted: bool
    settings: ServerSettings | None = None

    def alias(self, name: str) -> Alias | None:
        """The alias of that served name, or None."""
        return next((alias for alias in self.aliases if alias.name == name), None)


class IsSleeping(Answer):
    is_sleeping: bool


class IsPaused(Answer):
    is_paused: bool


class ErrorBody(Answer):
    message: str = ""
    type: str | None = None


class ErrorAnswer(Answer):
    error: ErrorBody | str


class CompletionLogprobs(Answer):
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[dict[str, float] | None, ...] | None = None


class CompletionChoice(Answer):
    text: str
    token_ids: tuple[int, ...] | None = None
    logprobs: CompletionLogprobs | None = None


class Completion(Answer):
    model: str
    choices: tuple[CompletionChoice, ...]


@dataclass(frozen=True)
class ServerLoad:
    """Requests in the engine, its sleep state, and the tokens generated since its start (None for values that the
    server does not report)."""

    running: int
    waiting: int
    sleep_state: SleepState | None
    generated_tokens: int | None = None


@dataclass(frozen=True)
class ProbeAnswer:
    """A greedy completion: token ids and the log-probability of each, in order.

    `answered_by` is the name of the adapter that answered (`name@7`). `likeliest` are the most likely tokens at each
    position, by `token_id:<id>`, with their log-probabilities.
    """

    answered_by: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    likeliest: tuple[Mapping[str, float], ...] = ()


_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)")
_SLEEP_LABEL = re.compile(r'sleep_state="([^"]*)"')


def parse_metrics(text: str) -> ServerLoad:
    """Read the Prometheus text of `/metrics`. Sums over the engines of a server. Raises ValueError if the request
    gauges are absent.
    """
    running: float | None = None
    waiting: float | None = None
    state: SleepState | None = None
    tokens: float | None = None
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        name, value = sample["name"], sample["value"]
        if name == "vllm:num_requests_running":
            running = (running or 0.0) + float(value)
        elif name == "vllm:num_requests_waiting":
            waiting = (waiting or 0.0) + float(value)
        elif name == "vllm:generation_tokens_total":
            tokens = (tokens or 0.0) + float(value)
        elif name == "vllm:engine_sleep_state" and float(value) == 1.0:
            label = _SLEEP_LABEL.search(sample["labels"] or "")
            state = SleepState(label[1]) if label else state
    if running is None or waiting is None:
        raise ValueError("vllm:num_requests_running or vllm:num_requests_waiting is absent")
    return ServerLoad(int(running), int(waiting), state, None if tokens is None else int(tokens))
