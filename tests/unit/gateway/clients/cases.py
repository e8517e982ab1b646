"""Requests that existing clients of CLaaS make, and what they rely on in the answers.

Each row was written from what those clients read. Left out: routes of the Tinker backend, which this release does not
have; the pass-through to vLLM's own routes, which would open control routes; and the evaluation's pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

CHAT, TEXT, FEEDBACK, LORA = "/v1/chat/completions", "/v1/completions", "/v1/feedback", "/v1/lora"
QUESTION = "Which river flows through Vienna?"
ANSWER = "The Danube flows through Vienna."
WISH = "Name the river alone."
SYSTEM: JsonValue = {"role": "system", "content": "You are a guide."}
ASKED: list[JsonValue] = [SYSTEM, {"role": "user", "content": QUESTION}]
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
    stream: str | None = None
    """The `object` of the events, if it is a stream."""


def chat(**more: JsonValue) -> dict[str, JsonValue]:
    return {"model": MODEL, "messages": ASKED, **more}


def item(**more: JsonValue) -> dict[str, JsonValue]:
    said = {"lora_id": "acme/tone-init", "prompt": QUESTION, "response": ANSWER, "feedback": WISH}
    given: dict[str, JsonValue] = {**said, "training": {}, **more}
    return {name: value for name, value in given.items() if value is not None}


def feedback(*items: JsonValue, **orchestration: JsonValue) -> JsonValue:
    hints: dict[str, JsonValue] = {
        "sleep_before": True,
        "wake_after": True,
        "wake_on_failure": True,
        "sleep_level": 1,
    }
    return {"requests": list(items) or [item()], "orchestration": hints | orchestration}


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
        types={"id": str, "created": int, "usage.prompt_tokens": int, "usage.total_tokens": int},
    ),
    Case(
        "thinking is no part of the answer",
        "POST",
        CHAT,
        chat(),
        given=Given("<think>a river, a river</think>\n\nThe Danube"),
        equals={"choices.0.message.content": "The Danube"},
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
    ),
    Case(
        "without the final channel there is no answer",
        "POST",
        CHAT,
        chat(),
        given=Given("<|channel|>analysis<|message|>a river, a ri"),
        equals={"choices.0.message.content": ""},
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
    Case("the model may be left out", "POST", CHAT, {"messages": ASKED, "max_tokens": 1}, types={"model": str}),
    Case(
        "unknown fields do not matter",
        "POST",
        CHAT,
        chat(n=1, tools=[], stream_options={"include_usage": True}, seed=1, user="u1", store=False),
    ),
    Case("stop words and nucleus", "POST", CHAT, chat(stop=["\n\n"], top_p=0.9)),
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
    Case("models are listed", "GET", "/v1/models", equals={"object": "list"}, types={"data.0.id": str}),
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
        equals={"status": "ok", "batch_size": 1, "vllm.slept": True, "vllm.woke": True, "lora_id": "acme/tone-init"},
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
    _malformed("a level of sleep that does not exist", feedback(item(), sleep_level=0)),
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
        "the other level of sleep is taken as a hint", "POST", FEEDBACK, feedback(item(), sleep_level=2), given=_ASKED
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
    ),
]

OTHERS = [
    Case("what it is", "GET", "/", types={"status": str}),
    Case("health for probes", "GET", "/health", types={"status": str}),
    Case("health", "GET", "/v1/health", types={"status": str, "worker.status": str}),
    Case("the page about the routes", "GET", "/docs"),
    Case("the document about the routes", "GET", "/openapi.json", types={"openapi": str, "paths": dict}),
    Case("the dashboard", "GET", "/v1/dashboard", text=["CLaaS Dashboard"]),
    Case("the dashboard has no page 0", "GET", "/v1/dashboard?page=0", status=422, types=_LIST),
    Case("the dashboard has no empty pages", "GET", "/v1/dashboard?per_page=0", status=422, types=_LIST),
]

LORAS = [
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
