"""What Prometheus reads. The first names are vLLM's, which operator and trainer ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class ProxyMetrics:
    """Counts of this process."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._running = 0
        self._prompt_tokens = self._generation_tokens = 0
        self._answers: Counter[str] = Counter()
        self._responses: Counter[tuple[str, int]] = Counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        """A prompt that the service is answering."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def answered(self, *, prompt_tokens: int, generation_tokens: int, finish: str) -> None:
        """An answer came."""
        self._prompt_tokens += prompt_tokens
        self._generation_tokens += generation_tokens
        self._answers[finish] += 1

    def responded(self, route: str, status: int) -> None:
        """A request was answered."""
        self._responses[route, status] += 1

    def text(self, served: Mapping[str, int]) -> str:
        """In Prometheus' text format. `served`: versions by served name."""
        model = {"model_name": self._model_name}
        sampled = self._generation_tokens
        lines = [
            *_metric("vllm:num_requests_running", "gauge", "Prompts that the service is answering.", [
                (model, self._running)
            ]),
            *_metric("vllm:num_requests_waiting", "gauge", "Always 0: the proxy has no queue of its own.", [
                (model, 0)
            ]),
            *_metric("vllm:prompt_tokens_total", "counter", "Tokens of prompts.", [(model, self._prompt_tokens)]),
            *_metric("vllm:generation_tokens_total", "counter", "Samples tokens.", [(model, sampled)]),
            *_metric("vllm:request_success_total", "counter", "Answers.", [
                ({**model, "finished_reason": finish}, count) for finish, count in sorted(self._answers.items())
            ]),
            *_metric("claas_proxy_responses_total", "counter", "Requests for answers, by route and HTTP status.", [
                ({"route": route, "status": str(status)}, count)
                for (route, status), count in sorted(self._responses.items())
            ]),
            *_metric("claas_proxy_served_version", "gauge", "The version behind a served name.", [
                ({"served_name": name}, version) for name, version in sorted(served.items())
            ]),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, what: str, samples: list[tuple[dict[str, str], int]]) -> Iterator[str]:
    yield f"# HELP {name} {what}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"{name}{{{shown}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
