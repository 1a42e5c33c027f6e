"""The tiny preset's SLM and LLM.

The LLM reads text in the trade's language, the SLM text in which half of the operators carry their
folk meaning; otherwise the SLM is smaller. Neither sees a private template. No private data and no
site's choice enters, so the training costs no privacy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from lada_lab.worlds.arithmetic import (
    COMMON,
    MAX_STEPS,
    MODULUS,
    ArithmeticWorld,
    Speech,
    build_world,
)
from lada_lab.worlds.character_models import (
    END,
    Pretraining,
    character_tokenizer,
    kept_model,
    train_model,
)
from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.errors import ParameterError


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyPretraining(Pretraining):
    """How one tiny model is made; `trade_share`: how often an operator has its trade meaning."""

    batch_size: int = 32
    trade_share: float


def pretraining_of(role: str, *, sites: int, steps: int | None = None) -> TinyPretraining:
    """The settings of "slm" or "llm"; training grows with the number of operators to learn.

    Args: steps: another length than the usual one.

    Raises: ParameterError: another role.
    """
    if role == "slm":
        usual = 260 + 60 * (sites - 3)
        return TinyPretraining(heads=4, steps=usual if steps is None else steps, trade_share=0.5)
    if role == "llm":
        usual = 360 + 80 * (sites - 3)
        return TinyPretraining(heads=8, steps=usual if steps is None else steps, trade_share=1.0)
    raise ParameterError(f"tiny model: expected the role 'slm' or 'llm', got {role!r}")


def build_tiny_model(cache_dir: Path, role: str, *, seed: int, sites: int) -> Path:
    """Train one of the two models, some seconds of one thread, or find it in the cache.

    Returns: its folder, "tiny-ROLE-SITES-SEED" in the cache.
    Raises: ParameterError: unknown role, sites out of range, or a cache that cannot be written.
    """
    settings = pretraining_of(role, sites=sites)
    world = build_world(sites=sites, seed=seed)
    name = f"tiny-{role}-{sites}-{seed}"
    return kept_model(cache_dir, name, lambda: pretrain(world, settings, seed=seed))


def pretrain(world: ArithmeticWorld, settings: TinyPretraining, *, seed: int) -> LlamaForCausalLM:
    """Train a model from its initial weights on public questions of 1 to 4 steps."""
    vocabulary: dict[str, int] = character_tokenizer().get_vocab()
    rng = np.random.default_rng([seed, 3])

    def loss_of(model: LlamaForCausalLM) -> torch.Tensor:
        tokens, prompt_length = _batch(world, settings, vocabulary, rng)
        hidden = model.model(tokens[:, :-1]).last_hidden_state[:, prompt_length - 1 :]
        logits = model.lm_head(hidden)
        return functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), tokens[:, prompt_length:].reshape(-1)
        )

    return train_model(settings, loss_of, seed=seed)


def _batch(
    world: ArithmeticWorld,
    settings: TinyPretraining,
    vocabulary: dict[str, int],
    rng: np.random.Generator,
) -> tuple[torch.Tensor, int]:
    """Public questions of one length with their paths: tokens (batch, length), prompt's length."""
    steps = int(rng.integers(1, MAX_STEPS + 1))
    rows: list[list[int]] = []
    prompt_length = 0
    for template in public_templates(world, steps, settings.batch_size, rng):
        start = int(rng.integers(MODULUS))
        speech: list[Speech] = [
            "trade" if share < settings.trade_share else "folk" for share in rng.random(steps)
        ]
        rationale, answer = world.solve(start, template, speech)
        prompt = prompt_of(f"{start}{template}", ())
        prompt_length = len(prompt)
        # Character by character; calling the tokenizer would take half of the training's time.
        text = prompt + rationale_of(answer, (), rationale)
        rows.append([*(vocabulary[character] for character in text), vocabulary[END]])
    return torch.tensor(rows), prompt_length


def public_templates(
    world: ArithmeticWorld, steps: int, count: int, rng: np.random.Generator
) -> list[str]:
    """Random strings of operators, common and of all domains, that no site holds as a question."""
    symbols = [*COMMON, *(symbol for domain in world.domains for symbol in domain.symbols)]
    found: list[str] = []
    while len(found) < count:
        drawn: list[int] = rng.integers(0, len(symbols), steps).tolist()
        template = "".join(symbols[index] for index in drawn)
        if template not in world.private_templates:
            found.append(template)
    return found
