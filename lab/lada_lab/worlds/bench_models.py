"""The benchmark's SLM and LLM: small Llama models trained on the world's public text.

Made once per world and kept in a cache folder. No site's data takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from lada_lab.worlds.chain_world import (
    HOUSE_SENSE,
    LONGEST,
    MARK,
    STREET_SENSE,
    BenchWorld,
    WorldSettings,
    build_world,
    general_question,
)
from lada_lab.worlds.model_cache import cached_folder
from lada_lab.worlds.tiny_models import tiny_tokenizer
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.errors import ParameterError
from lada_secure.models.loading import quiet_transformers

_VERSION = 1
_MAX_POSITIONS = 64
_IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPretraining:
    """How one model is made. marked: share of questions with the mark in its text."""

    role: str
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    steps: int = 400
    batch_size: int = 48
    learning_rate: float = 5e-3
    marked: float = 0.3


SLM_PRETRAINING = BenchPretraining(role="slm", steps=450)
LLM_PRETRAINING = BenchPretraining(role="llm", heads=8, steps=700, marked=0.5)


def bench_model(
    settings: WorldSettings, pretraining: BenchPretraining, *, seed: int, cache_dir: Path
) -> Path:
    """The folder of one model, trained where it is not in the cache yet."""
    world = build_world(settings, seed=seed)

    def build(folder: Path) -> None:
        model = pretrain(world, pretraining, seed=seed)
        with quiet_transformers():
            model.save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)

    return cached_folder(cache_dir, model_name(settings, pretraining, seed=seed), build)


def model_name(settings: WorldSettings, pretraining: BenchPretraining, *, seed: int) -> str:
    """Name of a model's folder: all that it depends on."""
    shape = canonical_json(
        {
            "sites": settings.sites,
            "senses": settings.senses,
            **{name: getattr(pretraining, name) for name in BenchPretraining.__slots__},
        }
    )
    return f"bench-{pretraining.role}-{seed}-{sha256_hex(shape)[:12]}-v{_VERSION}"


def pretrain(world: BenchWorld, settings: BenchPretraining, *, seed: int) -> LlamaForCausalLM:
    """Train from initial weights on public questions of 1 to 4 steps, on one thread."""
    if settings.role not in ("slm", "llm"):
        raise ParameterError(f"bench model: expected the role 'slm' or 'llm', got {settings.role}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _pretrain(world, settings, seed=seed)
    finally:
        torch.set_num_threads(threads)


def _pretrain(world: BenchWorld, settings: BenchPretraining, *, seed: int) -> LlamaForCausalLM:
    tokenizer = tiny_tokenizer()
    rng = np.random.default_rng([seed, 41, settings.role == "llm"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=settings.hidden,
                intermediate_size=2 * settings.hidden,
                num_hidden_layers=settings.layers,
                num_attention_heads=settings.heads,
                num_key_value_heads=settings.heads,
                max_position_embeddings=_MAX_POSITIONS,
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                # The usual 0.02 is for wide layers; at this width training takes three times
                # as long with it.
                initializer_range=0.1,
            )
        )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    model.train()
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    end = int(tokenizer.eos_token_id)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings.steps)
        tokens, targets = _batch(world, settings, vocabulary, end, rng)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(
            logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=_IGNORED
        )
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
    return model.eval()


def _schedule(step: int, steps: int) -> float:
    """Warm-up over 20 steps, constant, then linearly down over the last 40%."""
    done = step / steps
    return min(1.0, (step + 1) / 20) * (1.0 if done < 0.6 else max(0.03, (1 - done) / 0.4))


def _batch(
    world: BenchWorld,
    settings: BenchPretraining,
    vocabulary: dict[str, int],
    end: int,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and targets, each (batch, longest); right-padded, prompts carry no target."""
    steps = int(rng.integers(1, LONGEST + 1))
    rows: list[list[int]] = []
    starts: list[int] = []
    for _ in range(settings.batch_size):
        question = general_question(world, steps, rng, marked=settings.marked)
        marked = question.startswith(MARK)
        plain = question.removeprefix(MARK)
        sense = _senses_read(world, settings.role, plain[1:], marked, rng)
        rationale, answer = world.solve(int(plain[0]), plain[1:], sense)
        prompt = prompt_of(question, ())
        text = prompt + rationale_of(answer, (), rationale)
        rows.append([*(vocabulary[character] for character in text), end])
        starts.append(len(prompt))
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [end] * (width - len(row)) for row in rows])
    targets = torch.full_like(tokens, _IGNORED)
    for at, (row, start) in enumerate(zip(rows, starts, strict=True)):
        targets[at, start : len(row)] = tokens[at, start : len(row)]
    return tokens, targets


def _senses_read(
    world: BenchWorld, role: str, template: str, marked: bool, rng: np.random.Generator
) -> list[int]:
    """Which sense each step has in the text that a model reads."""
    count = max(len(one) for one in world.senses.values())
    drawn: list[int] = rng.integers(0, count, len(template)).tolist()
    if role == "slm":
        return drawn
    in_house = {house.in_house for house in world.houses}
    public = STREET_SENSE if marked else HOUSE_SENSE
    return [
        one if symbol in in_house else public for symbol, one in zip(template, drawn, strict=True)
    ]
