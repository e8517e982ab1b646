"""Answers and log-probabilities of a sampler."""

import copy
from dataclasses import dataclass

import torch
from tinker.types import SampleRequest
from tinker.types._pydantic_types.tensor_data import TensorData as JsonTensor

from tests.peers.tinker.model.lora import BaseModel, Cache, Lora
from tests.peers.tinker.model.wire import MASKED_LOGPROB, Sampled, TopK, sample_output


@dataclass(frozen=True)
class SamplingLimits:
    """What the service refuses with 400."""

    topk: int = 20
    """Most entries of topk_prompt_logprobs and topk_sample_logprobs."""
    target_cells: int | None = None
    """Most of prompt length x distinct ids in target_prompt_logprobs; None for no bound."""


def check(request: SampleRequest, model: BaseModel, limits: SamplingLimits) -> None:
    """ValueError for what the service would refuse."""
    prompt = request.prompt.to_ints()
    if not prompt:
        raise ValueError("prompt is empty")
    if min(prompt) < 0 or max(prompt) >= model.vocabulary:
        raise ValueError("prompt: a token is outside of the vocabulary")
    most = request.sampling_params.max_tokens
    if most is not None and most < 1:
        raise ValueError(f"max_tokens is {most}, at least 1 is needed")
    if len(prompt) + (most or 1) > model.context_length:
        raise ValueError(f"prompt and max_tokens exceed the context of {model.context_length} tokens")
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs"):
        if getattr(request, name) > limits.topk:
            raise ValueError(f"{name} is {getattr(request, name)}, at most {limits.topk} are allowed")
    if request.prompt_alt_tokens_k:
        raise ValueError("prompt_alt_tokens_k is not supported here")
    last = request.prompt_logprobs_last_n
    if last is not None and not (request.prompt_logprobs and 1 <= last <= len(prompt) - 1):
        raise ValueError("prompt_logprobs_last_n needs prompt_logprobs and lies between 1 and len(prompt) - 1")
    if request.target_prompt_logprobs is not None:
        ids = _target_ids(request.target_prompt_logprobs)
        if ids.ndim != 2 or ids.shape[0] != len(prompt) - 1:
            raise ValueError(f"target_prompt_logprobs must have {len(prompt) - 1} rows, one less than the prompt")
        distinct = torch.unique(ids[ids >= 0])
        if len(distinct) == 0:
            raise ValueError("target_prompt_logprobs names no token id")
        if int(distinct.max()) >= model.vocabulary:
            raise ValueError("target_prompt_logprobs: a token is outside of the vocabulary")
        if limits.target_cells is not None and len(prompt) * len(distinct) > limits.target_cells:
            raise ValueError(f"target_prompt_logprobs costs more than {limits.target_cells} cells")


def sample(request: SampleRequest, model: BaseModel, lora: Lora | None) -> bytes:
    """The response's bytes. Log-probabilities are the model's own, whatever the temperature."""
    prompt = request.prompt.to_ints()
    with torch.inference_mode():
        logits, cache = model.next_logits(torch.tensor([prompt]), lora, None)
        before = torch.log_softmax(logits[0, :-1], dim=-1)
        sequences = [
            _sequence(request, index, model, lora, logits[0, -1], cache) for index in range(request.num_samples)
        ]
        first = 1 if request.prompt_logprobs_last_n is None else len(prompt) - request.prompt_logprobs_last_n
        prompt_logprobs = None
        if request.prompt_logprobs:
            own = before.gather(-1, torch.tensor(prompt[1:], dtype=torch.int64)[:, None])[:, 0]
            prompt_logprobs = torch.full((len(prompt),), torch.nan)
            prompt_logprobs[first:] = own[first - 1 :]
        topk = _topk(before, request.topk_prompt_logprobs, first) if request.topk_prompt_logprobs else None
        targets = None
        if request.target_prompt_logprobs is not None:
            ids = _target_ids(request.target_prompt_logprobs)
            values = before.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, 0.0)
            targets = (request.target_prompt_logprobs, values)
        return sample_output(sequences, prompt_logprobs, topk, targets)


def _target_ids(tensor: JsonTensor) -> torch.Tensor:
    return tensor.to_torch(pad_value=-1)


def _topk(before: torch.Tensor, k: int, first: int) -> TopK:
    """Row i is of prompt position i; positions before `first` are masked as the wire does it."""
    length = before.shape[0] + 1
    ids = torch.zeros((length, k), dtype=torch.int64)
    logprobs = torch.full((length, k), MASKED_LOGPROB)
    best = before[first - 1 :].topk(k, dim=-1)
    ids[first:], logprobs[first:] = best.indices, best.values
    return TopK(ids, logprobs)


def _sequence(
    request: SampleRequest, index: int, model: BaseModel, lora: Lora | None, logits: torch.Tensor, cache: Cache
) -> Sampled:
    params = request.sampling_params
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed + index)
    stops = _Stops(params.stop, model)
    limit = params.max_tokens or model.context_length - len(request.prompt.to_ints())
    if index < request.num_samples - 1:
        cache = copy.deepcopy(cache)
    tokens: list[int] = []
    rows: list[torch.Tensor] = []
    while True:
        token = _draw(logits, params.temperature, params.top_k, params.top_p, generator)
        tokens.append(token)
        rows.append(torch.log_softmax(logits, dim=-1))
        stopped = stops.end(tokens)
        if stopped or len(tokens) == limit:
            break
        next_logits, cache = model.next_logits(torch.tensor([[token]]), lora, cache)
        logits = next_logits[0, -1]
    logprobs = torch.stack(rows)
    topk = None
    if request.topk_sample_logprobs:
        best = logprobs.topk(request.topk_sample_logprobs, dim=-1)
        topk = TopK(best.indices, best.values)
    own = logprobs.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    return Sampled(tokens, own.tolist(), stopped, topk)


def _draw(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    logits = logits / temperature
    if top_k > 0:
        smallest = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = torch.softmax(logits, dim=-1).sort(descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p
        logits = logits.index_fill(0, order[beyond], -torch.inf)
    return int(torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator))


class _Stops:
    """The answer ends with, and contains, the token that stops it. None stops at the end token, [] never."""

    def __init__(self, stop: object, model: BaseModel) -> None:
        values = [stop] if isinstance(stop, str) else list(stop) if isinstance(stop, (list, tuple)) else []
        self._tokenizer = model.tokenizer
        self._strings = [value for value in values if isinstance(value, str)]
        self._ids = {value for value in values if isinstance(value, int)}
        if stop is None and model.tokenizer.eos_token_id is not None:
            self._ids.add(model.tokenizer.eos_token_id)

    def end(self, tokens: list[int]) -> bool:
        if tokens[-1] in self._ids:
            return True
        return bool(self._strings) and any(string in self._tokenizer.decode(tokens) for string in self._strings)
