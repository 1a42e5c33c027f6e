"""The benchmark's SLM and LLM: small Llama models trained on the world's public text.

Made once per world and kept in a cache folder. No site's data takes part.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

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
from lada_lab.worlds.character_models import (
    END,
    Pretraining,
    character_tokenizer,
    kept_model,
    train_model,
)
from lada_lab.worlds.federation import CHAINS
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.data.prompts import prompt_of, rationale_of

_VERSION = 1
_IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPretraining(Pretraining):
    """How one model is made. marked: share of questions with the mark in its text."""

    role: Literal["slm", "llm"]
    steps: int = 400
    batch_size: int = 48
    marked: float = 0.3


SLM_PRETRAINING = BenchPretraining(role="slm", steps=450)
LLM_PRETRAINING = BenchPretraining(role="llm", heads=8, steps=700, marked=0.5)


def bench_model(
    settings: WorldSettings, pretraining: BenchPretraining, *, seed: int, cache_dir: Path
) -> Path:
    """The folder of one model, trained where it is not in the cache yet."""
    world = build_world(settings, seed=seed)
    name = model_name(settings, pretraining, seed=seed)
    return kept_model(cache_dir, name, lambda: pretrain(world, pretraining, seed=seed))


def chain_model(role: str, *, sites: int, seed: int, cache_dir: Path) -> Path:
    """A model of the mock's world of chains, "chain-ROLE-SITES-SEED" in the cache.

    Raises: ParameterError: sites out of range.
    """
    pretraining = SLM_PRETRAINING if role == "slm" else LLM_PRETRAINING
    world = build_world(replace(CHAINS, sites=sites), seed=seed)
    name = f"chain-{role}-{sites}-{seed}"
    return kept_model(cache_dir, name, lambda: pretrain(world, pretraining, seed=seed))


def model_name(settings: WorldSettings, pretraining: BenchPretraining, *, seed: int) -> str:
    """Name of a model's folder: all that it depends on."""
    shape = {"sites": settings.sites, "senses": settings.senses, **asdict(pretraining)}
    if settings.familiar:
        # Texts leave out what records have about common symbols.
        shape["familiar"] = True
    digest = sha256_hex(canonical_json(shape))[:12]
    return f"bench-{pretraining.role}-{seed}-{digest}-v{_VERSION}"


def pretrain(world: BenchWorld, settings: BenchPretraining, *, seed: int) -> LlamaForCausalLM:
    """Train from initial weights on public questions of 1 to 4 steps."""
    vocabulary: dict[str, int] = character_tokenizer().get_vocab()
    rng = np.random.default_rng([seed, 41, settings.role == "llm"])

    def loss_of(model: LlamaForCausalLM) -> torch.Tensor:
        tokens, targets = _batch(world, settings, vocabulary, rng)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        return functional.cross_entropy(
            logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=_IGNORED
        )

    return train_model(settings, loss_of, seed=seed)


def _batch(
    world: BenchWorld,
    settings: BenchPretraining,
    vocabulary: dict[str, int],
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and targets, each (batch, longest); right-padded, prompts carry no target."""
    steps = int(rng.integers(1, LONGEST + 1))
    end = vocabulary[END]
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
