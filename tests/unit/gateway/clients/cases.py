"""Requests that existing clients of CLaaS make, and what they rely on in the answers.

Each row was written from what those clients read. Left out: the evaluation's pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from tests.builders.front import BASE
from tests.builders.whole_gateway import weights

CHAT, TEXT, FEEDBACK = "/v1/chat/completions", "/v1/completions", "/v1/feedback"
LORA, DASHBOARD = "/v1/lora", "/v1/dashboard"
STATUS, REFRESH = "/v1/sampler/status", "/v1/sampler/refresh"
QUESTION = "Which river flows through Vienna?"
ANSWER = "The Danube flows through Vienna."
WISH = "Name the river alone."
SYSTEM: JsonValue = {"role": "system", "content": "You are a guide."}
ASKED: list[JsonValue] = [SYSTEM, {"role": "user", "content": QUESTION}]
SECOND_BASE = "second-base"
REPOSITORY = "Qwen/Qwen3-8B"
"""Where the base model comes from, by which clients name it too."""
MODEL = "acme-tone-init"
"""The dashed form of the identifier that init answered."""


@dataclass(frozen=True)
class Given:
    """What holds before the request."""

    answer: str = ANSWER
    """What the model says."""
    asked: bool = False
    """Whether the model was asked the question before, by chat."""
    completed: bool = False
    """The same, by a text completion."""
    loses_ids: bool = False
    """Whether the server forgets a token's id."""
    fails: bool = False
    """Whether the step fails for good."""
    upstream_status: int = 200
    alone: bool = False
    """Whether the gateway is a new one, with an empty store and no page that it still shares."""
    fed_back: Sequence[str] = ()
    """Feedback that was given before on answers to the question."""
    busy: bool = False
    """Whether vLLM is in the midst of another answer, which ends after the request alone."""
    down: bool = False
    """Whether no vLLM pod is ready."""
    several_bases: bool = False
    """Whether a second base model is served."""
    stalls: bool = False
    """Whether a new adapter never comes to serve."""
    tinker: bool = False
    """Whether the Tinker service trains and keeps the weights."""
    modal: bool = False
    """Whether steps are taken on Modal and a vLLM there answers, whose containers sleep when nobody asks."""


@dataclass(frozen=True)
class Case:
    """A request and its answer. Paths into JSON are dotted."""

    name: str
    method: str
    path: str
    body: JsonValue = None
    raw: str | None = None
    given: Given = Given()
    status: int = 200
    equals: Mapping[str, JsonValue] = field(default_factory=dict)
    types: Mapping[str, type] = field(default_factory=dict)
    contains: Mapping[str, Sequence[str]] = field(default_factory=dict)
    text: Sequence[str] = ()
    """What the body contains, whatever its form."""
    lacks: Sequence[str] = ()
    """What the body does not contain."""
    content_type: str = ""
    """What the media type begins with."""
    sent: Mapping[str, JsonValue] = field(default_factory=dict)
    """Fields of the request as it reaches vLLM."""
    unsent: Sequence[str] = ()
    """Fields that do not reach it."""
    stream: str | None = None
    """The `object` of the events, if it is a stream."""


def chat(**more: JsonValue) -> dict[str, JsonValue]:
    return {"model": MODEL, "messages": ASKED, **more}


def item(**more: JsonValue) -> dict[str, JsonValue]:
    said = {"lora_id": "acme/tone-init", "prompt": QUESTION, "response": ANSWER, "feedback": WISH}
    given: dict[str, JsonValue] = {**said, "training": {}, **more}
    return {name: value for name, value in given.items() if value is not None}


def feedback(*items: JsonValue) -> JsonValue:
    hints: dict[str, JsonValue] = {
        "sleep_before": True,
        "wake_after": True,
        "wake_on_failure": True,
        "sleep_level": 1,
    }
    return {"requests": list(items) or [item()], "orchestration": hints}


_ASKED = Given(asked=True)
_LIST = {"detail": list}


def _training(name: str, status: int = 200, **settings: JsonValue) -> Case:
    wrong = {"detail": ["invalid training config", *settings]} if status == 422 else {}
    return Case(
        name, "POST", FEEDBACK, feedback(item(training=dict(settings))), given=_ASKED, status=status, contains=wrong
    )


def _malformed(name: str, body: JsonValue) -> Case:
    return Case(name, "POST", FEEDBACK, body, given=_ASKED, status=422, types=_LIST)


CHATS = [
    Case(
        "a chat has OpenAI's shape",
        "POST",
        CHAT,
        chat(temperature=0, max_tokens=64),
        equals={
            "object": "chat.completion",
            "model": MODEL,
            "choices.0.index": 0,
            "choices.0.message.role": "assistant",
            "choices.0.message.content": ANSWER,
            "choices.0.finish_reason": "stop",
        },
        types={
            "id": str,
            "created": int,
            **{f"usage.{kind}_tokens": int for kind in ("prompt", "completion", "total")},
        },
    ),
    Case(
        "thinking is no part of the answer",
        "POST",
        CHAT,
        chat(),
        given=Given("<think>a river, a river</think>\n\nThe Danube"),
        equals={"choices.0.message.content": "The Danube"},
        lacks=["a river"],
    ),
    Case(
        "of channels the final one is the answer",
        "POST",
        CHAT,
        chat(),
        given=Given(
            "<|channel|>analysis<|message|>a river<|end|><|start|>assistant"
            "<|channel|>final<|message|>The Danube<|return|>"
        ),
        equals={"choices.0.message.content": "The Danube"},
        lacks=["a river"],
    ),
    Case(
        "without the final channel there is no answer",
        "POST",
        CHAT,
        chat(),
        given=Given("<|channel|>analysis<|message|>a river, a ri"),
        equals={"choices.0.message.content": ""},
        lacks=["a river"],
    ),
    Case(
        "a turn may have no content",
        "POST",
        CHAT,
        {"model": MODEL, "messages": [SYSTEM, {"role": "assistant", "content": None}, *ASKED[1:]]},
    ),
    Case("a chat streams", "POST", CHAT, chat(stream=True), stream="chat.completion.chunk"),
    Case(
        "alternatives of each token",
        "POST",
        CHAT,
        chat(logprobs=True, top_logprobs=20),
        types={
            "choices.0.logprobs.content": list,
            "choices.0.logprobs.content.0.token": str,
            "choices.0.logprobs.content.0.logprob": float,
            "choices.0.logprobs.content.0.top_logprobs": list,
        },
    ),
    Case(
        "the model may be left out",
        "POST",
        CHAT,
        {"messages": ASKED[1:], "max_tokens": 1},
        types={"model": str, "choices.0.message.content": str},
    ),
    Case(
        "the model may be left out only where one base model is served",
        "POST",
        CHAT,
        {"messages": ASKED[1:], "max_tokens": 1},
        given=Given(several_bases=True),
        status=422,
        contains={"detail": [BASE, SECOND_BASE]},
    ),
    Case(
        "fields of OpenAI's clients are passed on, and those that ask for nothing do no harm",
        "POST",
        CHAT,
        chat(n=1, tools=[], stream_options={"include_usage": True}, seed=1, user="u1", store=False),
        sent={"n": 1, "seed": 1, "user": "u1", "store": False},
        unsent=["tools", "stream_options"],
    ),
    Case(
        "stop words and nucleus",
        "POST",
        CHAT,
        chat(stop=["\n\n"], top_p=0.9),
        sent={"stop": ["\n\n"], "top_p": 0.9},
    ),
    Case(
        "the server's complaint about the length arrives as its own",
        "POST",
        CHAT,
        chat(max_tokens=999_999),
        given=Given(upstream_status=400),
        status=400,
        text=["maximum context length"],
    ),
    Case("a chat that is no JSON", "POST", CHAT, raw="{no json", status=422, types=_LIST),
    Case(
        "a completion streams",
        "POST",
        TEXT,
        {"model": MODEL, "prompt": "Once", "stream": True},
        stream="text_completion",
    ),
    Case("a completion needs a prompt", "POST", TEXT, {"model": MODEL}, status=422, types=_LIST),
    Case("models are listed", "GET", "/v1/models", equals={"object": "list"}, types={"data": list, "data.0.id": str}),
    Case(
        "an answer is scored",
        "POST",
        "/v1/score",
        {"model": MODEL, "messages": ASKED, "completion": "The Danube"},
        types={
            "logprobs": list,
            "tokens": list,
            "prompt_tokens": int,
            "completion_tokens": int,
            "logprob_sum": float,
        },
    ),
]

FEEDBACKS = [
    Case(
        "feedback becomes a step",
        "POST",
        FEEDBACK,
        feedback(),
        given=_ASKED,
        equals={
            "status": "ok",
            "batch_size": 1,
            "vllm.slept": True,
            "vllm.woke": True,
            "lora_id": "acme/tone-init",
            "distill_result.metadata.step": 8,
        },
        types={
            "request_id": str,
            "distill_result.lora_id": str,
            "distill_result.metadata": dict,
            "feedback_log_path": str,
            **{f"timing_ms.{part}": int for part in ("total", "distill", "sleep", "wake", "save", "logprobs")},
        },
    ),
    Case(
        "a batch of four, the same answer in it more than once",
        "POST",
        FEEDBACK,
        feedback(item(), item(feedback="In German."), item(), item()),
        given=_ASKED,
        equals={"batch_size": 4},
    ),
    Case(
        "two adapters in one batch",
        "POST",
        FEEDBACK,
        feedback(item(), item(lora_id="acme/other")),
        given=_ASKED,
        status=400,
        equals={"detail": "all requests must use the same lora_id"},
    ),
    Case(
        "two settings in one batch",
        "POST",
        FEEDBACK,
        feedback(item(training={"is_clip": 5.0}), item(training={"is_clip": 7.0})),
        given=_ASKED,
        status=400,
        equals={"detail": "all requests must use the same training config"},
    ),
    _malformed("nothing at all", {}),
    _malformed("no items", {"requests": []}),
    _malformed("no adapter", feedback(item(lora_id=None))),
    _malformed("no answer", feedback(item(response=None))),
    _malformed("no feedback", feedback(item(feedback=None))),
    _malformed("an empty answer", feedback(item(response=""))),
    _malformed("an empty feedback", feedback(item(feedback=""))),
    _malformed("a level of sleep that does not exist", {"requests": [item()], "orchestration": {"sleep_level": 0}}),
    _training("alpha above its range", 422, alpha=1.5),
    _training("is_clip below its range", 422, is_clip=-1),
    _training("max_grad_norm below its range", 422, max_grad_norm=-0.1),
    _training("kl_reg_weight above its range", 422, kl_reg_weight=1.1),
    _training("teacher_top_k above its range", 422, teacher_top_k=101),
    _training("alpha at its bound", alpha=0.0),
    _training("is_clip at its lower bound", is_clip=1.0),
    _training("is_clip at its upper bound", is_clip=20.0),
    _training("max_grad_norm at its bound", max_grad_norm=0.0),
    _training("kl_reg_weight at its bound", kl_reg_weight=1.0),
    _training("settings of older and newer clients", learning_rate=3e-5, steps_per_batch=4, teacher_mode="self"),
    Case(
        "settings and hints may be left out",
        "POST",
        FEEDBACK,
        {"requests": [item(training=None)]},
        given=_ASKED,
        equals={"vllm.slept": True},
    ),
    Case(
        "the other level of sleep is taken as a hint",
        "POST",
        FEEDBACK,
        {"requests": [item()], "orchestration": {"sleep_level": 2}},
        given=_ASKED,
    ),
    Case(
        "an answer that was never given",
        "POST",
        FEEDBACK,
        feedback(item(response="Never said")),
        given=_ASKED,
        status=404,
        contains={"detail": ["No cached completion"]},
    ),
    Case(
        "an answer whose tokens are not known",
        "POST",
        FEEDBACK,
        feedback(item(response="It has lost a token.")),
        given=Given("It has lost a token.", asked=True, loses_ids=True),
        status=422,
        contains={"detail": ["no logprobs"]},
    ),
    Case(
        "an adapter that is not there",
        "POST",
        FEEDBACK,
        feedback(item(lora_id="acme/none")),
        given=_ASKED,
        status=404,
        contains={"detail": ["LoRA not found", "acme/none"]},
    ),
    Case(
        "neither the answer nor the adapter: the answer is told first",
        "POST",
        FEEDBACK,
        feedback(item(lora_id="acme/none", response="Never said")),
        status=404,
        contains={"detail": ["No cached completion"]},
    ),
    Case(
        "white space as chat programs leave it",
        "POST",
        FEEDBACK,
        feedback(item(response="  The Danube\nflows   through\n\nVienna. ")),
        given=_ASKED,
    ),
    Case(
        "an answer with its thinking",
        "POST",
        FEEDBACK,
        feedback(item(response=f"<think>hm</think>{ANSWER}")),
        given=_ASKED,
    ),
    Case(
        "the newest version's identifier",
        "POST",
        FEEDBACK,
        feedback(item(lora_id="acme/tone-latest")),
        given=_ASKED,
        equals={"status": "ok", "lora_id": "acme/tone-latest"},
    ),
    Case(
        "the bare identifier",
        "POST",
        FEEDBACK,
        feedback(item(lora_id="acme/tone")),
        given=_ASKED,
        equals={"status": "ok"},
    ),
    Case(
        "a step that fails",
        "POST",
        FEEDBACK,
        feedback(),
        given=Given(asked=True, fails=True),
        status=500,
        contains={"detail": ["Feedback update failed in phase 'distill'"]},
        types={"request_id": str, "items.0.id": str},
    ),
    Case(
        "a busy server is no reason to refuse",
        "POST",
        FEEDBACK,
        feedback(),
        given=Given(asked=True, busy=True),
        equals={"status": "ok", "batch_size": 1},
    ),
    Case("recent feedback has no route", "GET", f"{FEEDBACK}/recent", status=404),
    Case(
        "a text completion is recorded too",
        "POST",
        FEEDBACK,
        feedback(item(response="It was told without a chat.")),
        given=Given("It was told without a chat.", completed=True),
    ),
    Case(
        "measurements by the names that clients read",
        "POST",
        FEEDBACK,
        feedback(item(), item()),
        given=_ASKED,
        types={
            f"distill_result.metadata.{name}": float
            for name in ("total_loss", "distill_loss", "kl_reg", "mean_is_ratio", "clip_fraction", "grad_norm")
        },
        equals={
            "distill_result.metadata.tokens_processed": 40,
            "distill_result.metadata.batch_size": 2,
            "distill_result.metadata.total_loss": 0.5,
            "distill_result.metadata.distill_loss": 0.4,
            "distill_result.metadata.kl_reg": 0.1,
            "distill_result.metadata.mean_is_ratio": 1.25,
            "distill_result.metadata.clip_fraction": 0.0625,
        },
        lacks=["teacher_scored_texts"],
    ),
]

OTHERS = [
    Case("vLLM's own routes are not passed through", "GET", "/v1/vllm/v1/models", status=404),
    Case("what it is", "GET", "/", types={"status": str}),
    Case("health for probes", "GET", "/health", equals={"status": "healthy"}),
    Case("health", "GET", "/v1/health", equals={"status": "healthy", "worker.status": "healthy"}),
    Case(
        "health is told with 200 also when nothing serves",
        "GET",
        "/v1/health",
        given=Given(down=True),
        equals={"status": "degraded", "worker.status": "unhealthy"},
        types={"worker.error": str},
    ),
    Case("the page about the routes", "GET", "/docs"),
    Case("the document about the routes", "GET", "/openapi.json", types={"openapi": str, "paths": dict}),
    Case(
        "the dashboard without feedback",
        "GET",
        DASHBOARD,
        given=Given(alone=True),
        text=["CLaaS Dashboard", "Page 1 of 1"],
        lacks=[QUESTION],
        content_type="text/html",
    ),
    Case(
        "the dashboard shows feedback and its prompt",
        "GET",
        DASHBOARD,
        given=Given(alone=True, fed_back=[WISH]),
        text=["CLaaS Dashboard", QUESTION, WISH],
        content_type="text/html",
    ),
    Case(
        "the dashboard has pages",
        "GET",
        f"{DASHBOARD}?page=1&per_page=1",
        given=Given(alone=True, fed_back=["In German.", WISH]),
        text=["Page 1 of 2", WISH],
        lacks=["In German."],
    ),
    Case(
        "the dashboard runs no markup of others",
        "GET",
        DASHBOARD,
        given=Given(alone=True, fed_back=["<script>alert(1)</script>"]),
        text=["&lt;script&gt;alert(1)"],
        lacks=["<script>alert"],
    ),
    Case("the dashboard has no page 0", "GET", f"{DASHBOARD}?page=0", status=422, types=_LIST),
    Case("the dashboard has no empty pages", "GET", f"{DASHBOARD}?per_page=0", status=422, types=_LIST),
]

LORAS = [
    Case("an adapter is made", "POST", f"{LORA}/init", {"lora_id": "acme/new"}, equals={"lora_id": "acme/new-init"}),
    Case(
        "an adapter is made with its size",
        "POST",
        f"{LORA}/init",
        {
            "lora_id": "acme/new",
            "base_model": REPOSITORY,
            "lora_r": 32,
            "lora_alpha": 64,
            "target_modules": ["q_proj", "v_proj"],
        },
        types={"lora_id": str},
    ),
    Case(
        "an adapter that does not come to serve",
        "POST",
        f"{LORA}/init",
        {"lora_id": "acme/new"},
        given=Given(stalls=True),
        status=500,
        contains={"detail": ["LoRA initialization failed"]},
    ),
    Case("adapters are listed", "GET", LORA, equals={"loras": ["acme/tone-init", "acme/tone-latest"]}),
    Case("adapters by a prefix", "GET", f"{LORA}?prefix=zzz/", equals={"loras": []}),
    Case("a prefix that is no path", "GET", f"{LORA}?prefix=../", equals={"loras": []}),
    Case(
        "a rank that vLLM does not take",
        "POST",
        f"{LORA}/init",
        {"lora_id": "acme/new", "lora_r": 3},
        status=422,
        types=_LIST,
    ),
    Case(
        "an alpha below its range",
        "POST",
        f"{LORA}/init",
        {"lora_id": "acme/new", "lora_alpha": 7},
        status=422,
        types=_LIST,
    ),
    Case(
        "an alpha above its range",
        "POST",
        f"{LORA}/init",
        {"lora_id": "acme/new", "lora_alpha": 257},
        status=422,
        types=_LIST,
    ),
    Case("the deletion of nothing", "DELETE", f"{LORA}?lora_id=acme/none", equals={"deleted": False}),
    Case("a deletion names what", "DELETE", LORA, status=422, types=_LIST),
    Case(
        "the export of nothing",
        "GET",
        f"{LORA}/export?lora_id=acme/none",
        status=404,
        contains={"detail": ["LoRA not found"]},
    ),
    Case("an export names what", "GET", f"{LORA}/export", status=422, types=_LIST),
]

_TINKER = Given(tinker=True)
TINKER = [
    Case(
        "what is sampled from can be asked for anew",
        "POST",
        REFRESH,
        {"model_path": None},
        given=_TINKER,
        equals={"status": "ok"},
    ),
    Case(
        "weights that are sampled from can be asked for",
        "POST",
        REFRESH,
        {"model_path": weights(8)},
        given=_TINKER,
        equals={"status": "ok", "model_path": weights(8)},
    ),
    Case(
        "weights of an older version can't be put in place of the newest one's",
        "POST",
        REFRESH,
        {"model_path": weights(7)},
        given=_TINKER,
        status=409,
        contains={"detail": ["version 7", "version 8"]},
    ),
    Case("weights that nobody made", "POST", REFRESH, {"model_path": "tinker://x"}, given=_TINKER, status=404),
    Case(
        "what is sampled from",
        "GET",
        STATUS,
        given=_TINKER,
        equals={"model_path": weights(8), "base_model": REPOSITORY, "lora_id": "acme/tone", "version": 8},
    ),
    Case(
        "feedback becomes a step by the service, and the new weights are sampled from",
        "POST",
        FEEDBACK,
        {"requests": [item()], "orchestration": {"sleep_before": False, "wake_after": False}},
        given=Given(tinker=True, asked=True),
        equals={
            "status": "ok",
            "vllm.slept": False,
            "vllm.woke": True,
            "timing_ms.sleep": 0,
            "timing_ms.wake": 375,
            "distill_result.metadata.step": 5,
            "distill_result.metadata.sampler_weights_path": weights(8),
            "distill_result.metadata.completion_len": 40,
            "distill_result.metadata.batch_size": 1,
            "distill_result.metadata.distill_loss": 0.4,
        },
        # A harness that finds advantages takes the rest for the measurements of another loss.
        lacks=["adv_mean", "grad_norm"],
    ),
    Case(
        "the model may be left out with the service too",
        "POST",
        CHAT,
        {"messages": [{"role": "user", "content": "hi"}]},
        given=_TINKER,
        types={"choices.0.message.content": str},
    ),
    Case(
        "an adapter that the service trains is made",
        "POST",
        f"{LORA}/init",
        {"lora_id": "acme/new", "base_model": REPOSITORY, "lora_r": 32},
        given=_TINKER,
        equals={"lora_id": "acme/new-init"},
    ),
    Case("nothing is sampled from a service", "GET", STATUS, status=404),
    Case(
        "without a service there is nothing to refresh",
        "POST",
        REFRESH,
        {"model_path": None},
        equals={"status": "ok"},
    ),
]


def _by_modal(case: Case) -> Case:
    return replace(case, name=f"{case.name}, by Modal", given=replace(case.given, modal=True))


def _holds_by_modal(case: Case) -> bool:
    """Whether a row is about neither pods and their pauses nor a gateway of its own."""
    given = case.given
    return not (given.several_bases or given.alone or given.down or given.busy or case.equals.get("vllm.slept"))


_MODAL = Given(modal=True)
MODAL = [
    *(_by_modal(case) for case in [*CHATS, *FEEDBACKS, *LORAS] if _holds_by_modal(case)),
    Case("a sleeping app is healthy", "GET", "/v1/health", given=_MODAL, equals={"status": "healthy"}),
    Case("a model of a sleeping app is listed", "GET", "/v1/models", given=_MODAL, equals={"data.1.id": "tone"}),
    Case(
        "feedback becomes a step on Modal, for which nothing is paused",
        "POST",
        FEEDBACK,
        feedback(),
        given=Given(modal=True, asked=True),
        equals={
            "status": "ok",
            "vllm.slept": False,
            "vllm.woke": False,
            "timing_ms.sleep": 0,
            "timing_ms.wake": 0,
            "timing_ms.distill": 1000,
            "distill_result.metadata.step": 8,
            "distill_result.metadata.total_loss": 0.5,
            "distill_result.metadata.grad_norm": 2.0,
            "distill_result.metadata.tokens_processed": 40,
            "distill_result.metadata.modal_seconds_step": 1.0,
        },
        lacks=["sampler_weights_path"],
    ),
    Case("an app on Modal samples from no service", "GET", STATUS, given=_MODAL, status=404),
]
