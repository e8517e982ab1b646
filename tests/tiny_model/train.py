"""Trains the tiny Qwen3 on the corpus, on the CPU, in a few minutes."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from claas_trainer.samples.hindsight import Message, Role
from tests.tiny_model.corpus import chats
from tests.tiny_model.tokenizer import END_TOKEN, START_TOKEN, VOCABULARY_SIZE, train_tokenizer

STEPS = 1600
BATCH_SIZE = 16
WARM_UP_STEPS = 30
PEAK_LEARNING_RATE = 8e-3
TOKENIZER_CHATS = 4000
POOL_BATCHES = 32
CONTEXT_TOKENS = 512


@dataclass(frozen=True)
class Encoded:
    """One chat as tokens; `answered` marks the tokens that the model learns to write."""

    ids: list[int]
    answered: list[bool]


def encode(chat: list[Message], tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """A chat's tokens, cut at the answers as they are when one is generated."""
    ids: list[int] = []
    answered: list[bool] = []

    def add(text: str, *, learned: bool) -> None:
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids.extend(piece)
        answered.extend([learned] * len(piece))

    for message in chat:
        add(f"{START_TOKEN}{message.role}\n", learned=False)
        add(f"{message.content}{END_TOKEN}", learned=message.role is Role.ASSISTANT)
        add("\n", learned=False)
    return Encoded(ids, answered)


def batches(seed: int, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[Encoded]]:
    """Batches of chats of like length, without end, in an order that does not follow the length."""
    source = chats(seed)
    rng = random.Random(seed)
    while True:
        pool = [encode(chat, tokenizer) for chat in itertools.islice(source, POOL_BATCHES * BATCH_SIZE)]
        pool.sort(key=lambda item: len(item.ids))
        groups = [pool[start : start + BATCH_SIZE] for start in range(0, len(pool), BATCH_SIZE)]
        rng.shuffle(groups)
        yield from groups


def collate(group: list[Encoded], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and the mask of learned tokens, both [batch, longest], padded on the right."""
    width = max(len(item.ids) for item in group)
    ids = torch.full((len(group), width), pad_id)
    learned = torch.zeros((len(group), width), dtype=torch.bool)
    for row, item in enumerate(group):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        learned[row, : len(item.ids)] = torch.tensor(item.answered)
    return ids, learned


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The untrained model, 869,632 parameters."""
    config = Qwen3Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        initializer_range=0.06,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def learning_rate(step: int) -> float:
    """The rate at a step, as a share of the peak: a linear warm-up, then linear to 0."""
    return min((step + 1) / WARM_UP_STEPS, (STEPS - step) / (STEPS - WARM_UP_STEPS))


def train(seed: int) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """A trained model (fp32 on the CPU) and its tokenizer; prints its progress."""
    started = time.monotonic()
    torch.manual_seed(seed)
    texts = (
        f"{message.role}\n{message.content}"
        for chat in itertools.islice(chats(seed + 1), TOKENIZER_CHATS)
        for message in chat
    )
    tokenizer = train_tokenizer(texts)
    print(f"tokenizer: {time.monotonic() - started:.1f} s", flush=True)
    model = new_model(tokenizer)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate)
    tokens = 0
    for step, group in enumerate(itertools.islice(batches(seed, tokenizer), STEPS)):
        ids, learned = collate(group, tokenizer.pad_token_id)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # Padding stands on the right, so the causal mask alone keeps it out of sight.
            hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
            logits = model.lm_head(hidden[learned[:, 1:]])
        loss = F.cross_entropy(logits.float(), ids[:, 1:][learned[:, 1:]])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tokens += sum(len(item.ids) for item in group)
        if step % 100 == 0 or step == STEPS - 1:
            elapsed = time.monotonic() - started
            print(f"step {step:4d}  loss {loss.item():.3f}  {tokens:,} tokens  {elapsed:.0f} s", flush=True)
    model.eval()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, tokenizer
