"""Checks what the Tinker engine assumes of the service, once, with tiny prompts, and prints what differs.

The key comes from TINKER_API_KEY. Nothing is asked before the cost was told and agreed to. All that is saved is
deleted in the end, and has a time to live of an hour besides. Exit code: 0 as assumed, 1 something differs, 2 the
check could not be made.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

# It would send request headers, which hold the key. The SDK reads it when a client is made.
os.environ["TINKER_TELEMETRY"] = "0"

import tinker
import torch
from tinker import types

from tools.live_check import Findings

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

TOKENS = 32
"""Length of the prompts of most checks."""
LENGTHS = (64, 256, 1024)
"""Lengths of the prompts by which the bound of target ids is looked for."""
K = 20
RANK = 8
SEED = 17
CALL_SECONDS = 300.0
TTL_SECONDS = 3600
SAMPLER_CALLS = 6
TRAINING_PASSES = 13
"""Of `TOKENS` tokens, forward or forward and backward."""
CHECKPOINTS = 2
SAME = 1e-3
"""Log-probabilities that differ by less are the same, computed twice."""
CLOSE = 0.1
"""Likewise for sampler and trainer, whose numerics differ."""


class Future(Protocol[T_co]):
    """A future of the SDK."""

    def result(self, timeout: float | None = None) -> T_co: ...


ERRORS = (tinker.TinkerError, TimeoutError, ValueError, RuntimeError)


def wait(future: Future[T]) -> T:
    """The result, or TimeoutError: some calls would be retried for hours."""
    return future.result(timeout=CALL_SECONDS)


def ids(length: int) -> list[int]:
    """Token ids that every model has."""
    return [20 + position % 200 for position in range(length)]


def prompt(tokens: Sequence[int]) -> types.ModelInput:
    """The ids as the SDK takes them."""
    return types.ModelInput.from_ints(list(tokens))


def cost() -> str:
    """What the check makes the service do."""
    sampled = (SAMPLER_CALLS + 2) * TOKENS + sum(LENGTHS)
    return (
        f"about {sampled} prompt tokens and {SAMPLER_CALLS + len(LENGTHS) + 2} sampled tokens, about"
        f" {TRAINING_PASSES * TOKENS} training tokens (a LoRA of rank {RANK}), and {CHECKPOINTS} checkpoints with"
        f" their sampler weights for minutes"
    )


class Sampling:
    """The part about samplers: top-k, target ids, their bounds."""

    def __init__(self, findings: Findings, client: tinker.SamplingClient, context: int | None) -> None:
        self._findings = findings
        self._client = client
        self._lengths = [length for length in LENGTHS if context is None or length < context]

    def ask(
        self, tokens: Sequence[int], *, topk: int = 0, targets: torch.Tensor | None = None, last: int | None = None
    ) -> types.SampleResponse:
        """The answer about a prompt, with one sampled token."""
        asked = None if targets is None else types.TensorData.from_torch_sparse(targets, pad_value=-1)
        return wait(
            self._client.sample(
                prompt(tokens),
                1,
                types.SamplingParams(max_tokens=1),
                include_prompt_logprobs=True,
                topk_prompt_logprobs=topk,
                target_prompt_logprobs=asked,
                prompt_logprobs_last_n=last,
            )
        )

    def refused(self, topk: int) -> bool:
        """Whether so many entries are refused."""
        try:
            self.ask(ids(TOKENS), topk=topk)
        except (tinker.BadRequestError, tinker.UnprocessableEntityError):
            return True
        except tinker.RequestFailedError as error:
            print(f"           (refused as a failed request: {error.category})")
            return True
        return False

    def check_topk(self) -> torch.Tensor:
        """The student's support: K entries at each position of the answer. Returns the ids [last, K]."""
        last = TOKENS // 2
        found = self.ask(ids(TOKENS), topk=K, last=last)
        rows = found.topk_prompt_logprobs or []
        scored = [row for row in rows[-last:] if row is not None]
        whole = len(scored) == last and all(len(row) == K for row in scored)
        self._findings.tell(
            "top-k of the prompt",
            f"{len(scored)} of {last} rows, {min((len(row) for row in scored), default=0)} entries each",
            as_assumed=whole,
            assumed=f"{K} entries at each of the last {last} positions",
        )
        refused = self.refused(K + 1)
        self._findings.tell(
            "most top-k entries",
            f"{K + 1} are {'refused' if refused else 'taken'}",
            as_assumed=refused,
            assumed=f"{K} at most (teacher_top_k above {K} is refused; if more are taken, we may raise it)",
        )
        support = torch.tensor([[id_ for id_, _ in row] for row in scored])
        values = torch.tensor([[value for _, value in row] for row in scored])
        again = self.ask(ids(TOKENS), targets=_at_the_end(support, TOKENS))
        if again.target_prompt_logprobs is None:
            self._findings.tell("target ids", "no answer", as_assumed=False, assumed="log-probabilities")
            return support
        dense = again.target_prompt_logprobs.to_torch()[-last:]
        gap = float((dense - values).abs().max())
        self._findings.tell(
            "target ids",
            f"differ from top-k of the same prompt by {gap:.2g}",
            as_assumed=gap < CLOSE,
            assumed="the same log-probabilities",
        )
        return support

    def check_bound(self) -> None:
        """The bound of len(prompt) x distinct target ids, as a step would meet it."""
        for length in self._lengths:
            targets = torch.arange((length - 1) * K).remainder(20_000).reshape(length - 1, K) % self._ids()
            cells = length * len(torch.unique(targets))
            try:
                self.ask(ids(length), targets=targets)
            except (tinker.APIStatusError, tinker.RequestFailedError) as error:
                self._findings.tell(
                    "bound of target ids",
                    f"{length} tokens x {cells // length} ids are refused ({str(error)[:120]})",
                    as_assumed=False,
                    assumed="prompts of this length are scored; longer ones go through a training client",
                )
                return
            self._findings.tell("bound of target ids", f"{length} tokens x {cells // length} distinct ids are taken")

    def _ids(self) -> int:
        """So many token ids every model has; a tiny one for tests has few."""
        try:
            self.ask(ids(TOKENS), targets=_at_the_end(torch.full((1, 1), 19_999), TOKENS))
        except (tinker.APIStatusError, tinker.RequestFailedError):
            return 200
        return 20_000


class Training:
    """The part about a training run."""

    def __init__(
        self, findings: Findings, service: tinker.ServiceClient, rest: tinker.RestClient, base_model: str
    ) -> None:
        self._findings = findings
        self._service = service
        self._rest = rest
        self.client = wait(service.create_lora_training_client(base_model, rank=RANK, seed=SEED, train_unembed=False))
        self.saved: list[str] = []

    def logprobs(self, client: tinker.TrainingClient, targets: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of [T, K] targets."""
        output = wait(client.forward([_datum(targets, torch.zeros(targets.shape))], "cross_entropy"))
        found = output.loss_fn_outputs[0]["logprobs"]
        return found.to_torch().reshape(found.shape or list(targets.shape))

    def check_shapes(self, support: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        """(N, K) targets, and how trainer and sampler agree on the base model. Returns the targets."""
        last = len(support)
        targets = torch.zeros((TOKENS - 1, K), dtype=torch.int64)
        targets[-last:] = support
        found = self.logprobs(self.client, targets)
        self._findings.tell(
            "(N, K) targets",
            f"log-probabilities of shape {tuple(found.shape)}",
            as_assumed=found.shape == targets.shape,
            assumed=str(tuple(targets.shape)),
        )
        asked = sampling.ask(ids(TOKENS), targets=_at_the_end(support, TOKENS)).target_prompt_logprobs
        assert asked is not None
        gap = float((asked.to_torch()[-last:] - found[-last:]).abs().max())
        self._findings.tell(
            "a new LoRA is the base model",
            f"sampler and trainer differ by {gap:.2g}",
            as_assumed=gap < CLOSE,
            assumed=f"less than {CLOSE:g} (numerics only)",
        )
        return targets

    def check_step(self, targets: torch.Tensor) -> torch.Tensor:
        """A step by a loss of our own, which a veto may stop. Returns the log-probabilities after it."""
        before = self.logprobs(self.client, targets)

        def loss(_: list[types.Datum], values: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
            return -values[0][-1, 0], {"ours": 1.0}

        data = [_datum(targets, None)]
        gradient = self.client.forward_backward_custom(data, loss)
        step = self.client.optim_step(types.AdamParams(learning_rate=1e-3, weight_decay=0.0, grad_clip_norm=1.0))
        output = wait(gradient)
        metrics = wait(step).metrics or {}
        after = self.logprobs(self.client, targets)
        moved = float((after - before).abs().max())
        self._findings.tell(
            "a custom loss and a step",
            f"log-probabilities moved by {moved:.2g}",
            as_assumed=moved > 0 and output.metrics.get("ours") == 1.0,
            assumed="they move, and the loss's own metrics come back",
        )
        self._findings.told("metrics of optim_step", ", ".join(sorted(metrics)) or "none")
        return after

    def check_resent(self, targets: torch.Tensor, after: torch.Tensor) -> None:
        """A second client of the same run sends the same requests by their numbers: none may run again."""
        info = self.client.get_info()
        twin = tinker.TrainingClient(
            self.client.holder, self.client._training_client_id, self.client.model_id, info=info
        )
        again = Training.__new__(Training)
        again._findings, again.client = Findings(ERRORS), twin
        with _silent():
            again.logprobs(twin, targets)
            again.check_step(targets)
        now = self.logprobs(twin, targets)
        gap = float((now - after).abs().max())
        self._findings.tell(
            "requests that are sent again",
            f"log-probabilities moved by {gap:.2g}",
            as_assumed=gap < SAME,
            assumed="a request with a known number is not carried out again",
        )
        self.client = twin

    def check_resume(self, targets: torch.Tensor, after: torch.Tensor) -> None:
        """Saved state comes back, and Adam's momentum with it."""
        name = f"live-check-{int(time.time())}"
        state = self.client.save_state(name, ttl_seconds=TTL_SECONDS)
        sampler = self.client.save_weights_for_sampler(name, ttl_seconds=TTL_SECONDS)
        self.saved += [wait(state).path, wait(sampler).path]
        self._findings.told("paths", ", ".join(self.saved))
        with_adam = wait(self._service.create_training_client_from_state_with_optimizer(self.saved[0]))
        gap = float((self.logprobs(with_adam, targets) - after).abs().max())
        self._findings.tell(
            "weights come back", f"differ by {gap:.2g}", as_assumed=gap < SAME, assumed="the same log-probabilities"
        )
        moved = self._coast(with_adam, targets, after)
        without = wait(self._service.create_training_client_from_state(self.saved[0]))
        still = self._coast(without, targets, after)
        self._findings.tell(
            "Adam's state comes back",
            f"by momentum alone the weights move by {moved:.2g}, without the optimiser by {still:.2g}",
            as_assumed=moved > SAME / 10 and still < moved / 2,
            assumed="they move only if the optimiser was restored (optimizer_restored of a version says so)",
        )

    def _coast(self, client: tinker.TrainingClient, targets: torch.Tensor, before: torch.Tensor) -> float:
        """How far a step without a gradient moves the log-probabilities."""
        gradient = client.forward_backward([_datum(targets, torch.zeros(targets.shape))], "cross_entropy")
        step = client.optim_step(types.AdamParams(learning_rate=1e-3, weight_decay=0.0))
        wait(gradient)
        wait(step)
        return float((self.logprobs(client, targets) - before).abs().max())

    def clean_up(self) -> None:
        """Delete what was saved."""
        for path in self.saved:
            wait(self._rest.delete_checkpoint_from_tinker_path(path))
        self._findings.tell("deletion of checkpoints", f"{len(self.saved)} deleted")


def _at_the_end(support: torch.Tensor, length: int) -> torch.Tensor:
    """Target ids [length - 1, K] that ask for the last rows only."""
    whole = torch.full((length - 1, support.shape[1]), -1, dtype=torch.int64)
    whole[-len(support) :] = support
    return whole


def _datum(targets: torch.Tensor, weights: torch.Tensor | None) -> types.Datum:
    inputs = {"target_tokens": types.TensorData.from_torch(targets)}
    if weights is not None:
        inputs["weights"] = types.TensorData.from_torch(weights)
    return types.Datum(model_input=prompt(ids(TOKENS)[: len(targets)]), loss_fn_inputs=inputs)


@contextmanager
def _silent() -> Iterator[None]:
    """Print nothing within."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        standard, sys.stdout = sys.stdout, nowhere
        try:
            yield
        finally:
            sys.stdout = standard


def check(base_model: str, base_url: str | None, project: str | None) -> Findings:
    """Make all checks. Raises tinker.TinkerError when there is no session."""
    findings = Findings(ERRORS)
    rest = tinker.RestClient(base_url=base_url)
    service = tinker.ServiceClient(project_id=project, base_url=base_url)
    try:
        models = {model.model_name: model for model in wait(rest.get_server_capabilities()).supported_models}
        model = models.get(base_model)
        if model is None:
            names = ", ".join(sorted(name for name in models if name))
            findings.tell("base model", "not offered", as_assumed=False, assumed=f"one of {names}")
            return findings
        findings.tell(
            "base model",
            f"trainable {model.trainable}, sampleable {model.sampleable}, context {model.max_context_length}",
            as_assumed=model.trainable is not False and model.sampleable is not False,
            assumed="both",
        )
        sampling = Sampling(
            findings, wait(service.create_sampling_client(base_model=base_model)), model.max_context_length
        )
        support: list[torch.Tensor] = []
        with findings.part("samplers"):
            support.append(sampling.check_topk())
            sampling.check_bound()
        if support:
            with findings.part("training"):
                _check_training(Training(findings, service, rest, base_model), support[0], sampling)
    finally:
        with findings.part("closing the session"):
            wait(service.close("success"))
    return findings


def _check_training(training: Training, support: torch.Tensor, sampling: Sampling) -> None:
    targets = training.check_shapes(support, sampling)
    after = training.check_step(targets)
    training.check_resent(targets, after)
    try:
        training.check_resume(targets, after)
    finally:
        training.clean_up()


def main(arguments: Sequence[str] | None = None, ask: Callable[[str], str] = input) -> int:
    """Run the check."""
    parser = argparse.ArgumentParser(prog="tools/tinker-live-check", description=__doc__)
    parser.add_argument("base_model", help="the service's name of the base model, such as Qwen/Qwen3-8B")
    parser.add_argument("--base-url", help="address of the service, if not the SDK's own")
    parser.add_argument("--project", help="the project that the run belongs to")
    parser.add_argument("--yes", action="store_true", help="do not ask whether the cost is all right")
    options = parser.parse_args(arguments)
    if not os.environ.get("TINKER_API_KEY"):
        print("tinker-live-check: put the key into TINKER_API_KEY", file=sys.stderr)
        return 2
    # The SDK logs each refusal, and refusals are what is looked for.
    logging.getLogger("tinker").setLevel(logging.CRITICAL)
    print(f"SDK {tinker.__version__}; the check takes {cost()}.")
    if not options.yes and ask("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        return 2
    try:
        findings = check(options.base_model, options.base_url, options.project)
    except (tinker.TinkerError, TimeoutError) as error:
        print(f"tinker-live-check: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
        return 2
    return findings.conclude()


if __name__ == "__main__":
    sys.exit(main())
