"""The tiny preset's SLM and LLM: small Llama models trained here, on public text, in seconds.

The LLM reads text in the trade's language, the SLM text in which half of the operators carry their
folk meaning; otherwise the SLM is smaller. Neither sees a private template. No private data and no
site's choice enters, so the training costs no privacy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lada_lab.worlds.arithmetic import (
    COMMON,
    DOMAIN_SYMBOLS,
    MAX_STEPS,
    MODULUS,
    ArithmeticWorld,
    Speech,
    build_world,
)
from lada_lab.worlds.model_cache import cached_folder
from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.errors import ParameterError
from lada_secure.models.loading import quiet_transformers

_PAD, _END, _UNKNOWN = "<pad>", "<end>", "<unk>"
_MAX_POSITIONS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """How one tiny model is made; `trade_share`: how often an operator has its trade meaning."""

    hidden: int
    layers: int
    heads: int
    steps: int
    batch_size: int
    learning_rate: float
    trade_share: float


def pretraining_of(role: str, *, sites: int, steps: int | None = None) -> Pretraining:
    """The settings of "slm" or "llm"; training grows with the number of operators to learn.

    Args: steps: another length than the usual one.

    Raises: ParameterError: another role.
    """
    if role == "slm":
        return Pretraining(
            hidden=64,
            layers=2,
            heads=4,
            steps=260 + 60 * (sites - 3) if steps is None else steps,
            batch_size=32,
            learning_rate=5e-3,
            trade_share=0.5,
        )
    if role == "llm":
        return Pretraining(
            hidden=64,
            layers=2,
            heads=8,
            steps=360 + 80 * (sites - 3) if steps is None else steps,
            batch_size=32,
            learning_rate=5e-3,
            trade_share=1.0,
        )
    raise ParameterError(f"tiny model: expected the role 'slm' or 'llm', got {role!r}")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character: digits, operators, line break; with the usual interface."""
    characters = [*(str(digit) for digit in range(MODULUS)), *COMMON, *DOMAIN_SYMBOLS, "\n"]
    vocabulary = {
        token: index for index, token in enumerate([_PAD, _END, _UNKNOWN, *sorted(characters)])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        unk_token=_UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def build_tiny_model(cache_dir: Path, role: str, *, seed: int, sites: int) -> Path:
    """Train one of the two models, some seconds of one thread, or find it in the cache.

    Returns: its folder, "tiny-ROLE-SITES-SEED" in the cache.
    Raises: ParameterError: unknown role, sites out of range, or a cache that cannot be written.
    """
    settings = pretraining_of(role, sites=sites)
    world = build_world(sites=sites, seed=seed)

    def build(folder: Path) -> None:
        model = pretrain(world, settings, seed=seed)
        with quiet_transformers():
            model.save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)

    return cached_folder(cache_dir, f"tiny-{role}-{sites}-{seed}", build)


def pretrain(world: ArithmeticWorld, settings: Pretraining, *, seed: int) -> LlamaForCausalLM:
    """Train a model from its initial weights on public questions of 1 to 4 steps.

    Uses one thread: at this size two only wait for each other, for minutes on a busy machine. The
    global random state of torch and its number of threads are left as they were.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _pretrain(world, settings, seed=seed)
    finally:
        torch.set_num_threads(threads)


def _pretrain(world: ArithmeticWorld, settings: Pretraining, *, seed: int) -> LlamaForCausalLM:
    tokenizer = tiny_tokenizer()
    rng = np.random.default_rng([seed, 3])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_config(settings, tokenizer))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    model.train()
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings.steps)
        tokens, prompt_length = _batch(world, settings, vocabulary, rng)
        hidden = model.model(tokens[:, :-1]).last_hidden_state[:, prompt_length - 1 :]
        logits = model.lm_head(hidden)
        loss = functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), tokens[:, prompt_length:].reshape(-1)
        )
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
    return model.eval()


def _schedule(step: int, steps: int) -> float:
    """Warm-up over 20 steps, constant, then linearly down over the last 40%."""
    done = step / steps
    return min(1.0, (step + 1) / 20) * (1.0 if done < 0.6 else max(0.03, (1 - done) / 0.4))


def _config(settings: Pretraining, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
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
        # The usual 0.02 is for wide layers; at this width the models take three times as long.
        initializer_range=0.1,
    )


def _batch(
    world: ArithmeticWorld,
    settings: Pretraining,
    vocabulary: Mapping[str, int],
    rng: np.random.Generator,
) -> tuple[torch.Tensor, int]:
    """Public questions of one length with their paths: tokens (batch, length), prompt's length."""
    steps = int(rng.integers(1, MAX_STEPS + 1))
    rows: list[list[int]] = []
    end_token = vocabulary[_END]
    prompt_length = 0
    for template in public_templates(world, steps, settings.batch_size, rng):
        start = int(rng.integers(MODULUS))
        speech: tuple[Speech, ...] = tuple(
            "trade" if share < settings.trade_share else "folk" for share in rng.random(steps)
        )
        rationale, answer = world.solve_as(start, template, speech)
        prompt = prompt_of(f"{start}{template}", ())
        prompt_length = len(prompt)
        # Character by character; calling the tokenizer would take half of the training's time.
        text = prompt + rationale_of(answer, (), rationale)
        rows.append([*(vocabulary[character] for character in text), end_token])
    return torch.tensor(rows), prompt_length


def public_templates(
    world: ArithmeticWorld, steps: int, count: int, rng: np.random.Generator
) -> list[str]:
    """Random strings of operators, common and of all domains, that no site holds as a question."""
    symbols = [*COMMON, *(symbol for domain in world.domains for symbol in domain.symbols)]
    private = world.private_templates
    found: list[str] = []
    while len(found) < count:
        drawn: Sequence[int] = rng.integers(0, len(symbols), steps).tolist()
        template = "".join(symbols[one] for one in drawn)
        if template not in private:
            found.append(template)
    return found
