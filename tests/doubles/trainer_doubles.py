"""Small models from configurations, a character tokenizer, and a ledger held in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from lada_secure.dpsgd.clipping import ClippedSum
from lada_secure.dpsgd.trainer import Trainer
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.placement import Dtype, Placement
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.terms import BudgetCaps

# Two threads on a busy machine wait for each other longer than these models compute.
torch.set_num_threads(1)

LETTERS = "abcdefghijklmnopqrstuvwxyz 0123456789"
PLAN_HASH = "ab" * 32
ARCHITECTURES = ("llama", "gpt2", "qwen2", "gemma")


def character_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<end>": 1, "<unk>": 2}
    vocabulary |= {letter: at + 3 for at, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )


def configuration(architecture: str, *, layers: int = 3) -> PretrainedConfig:
    size = {"vocab_size": len(LETTERS) + 3, "bos_token_id": None, "eos_token_id": 1}
    if architecture == "gpt2":
        return GPT2Config(n_embd=32, n_layer=layers, n_head=4, n_positions=64, **size)
    shared = {
        **size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    if architecture == "llama":
        return LlamaConfig(**shared)
    if architecture == "qwen2":
        return Qwen2Config(**shared)
    return GemmaConfig(head_dim=8, **shared)


def small_model(
    architecture: str = "llama",
    *,
    seed: int = 0,
    layers: int = 3,
    dtype: Dtype = "float32",
    gradient_checkpointing: bool = False,
) -> LanguageModel:
    placement = Placement(device="cpu", dtype=dtype, gradient_checkpointing=gradient_checkpointing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(configuration(architecture, layers=layers))
        # Wider than the usual start, so that gradients are far above rounding errors.
        for one in model.parameters():
            if one.dim() > 1:
                torch.nn.init.normal_(one, std=0.15)
    for one in model.parameters():
        # As a folder is loaded: the weights, not the tables of positions.
        one.data = one.data.to(placement.torch_dtype)
    model.eval()
    return LanguageModel(
        model=model,
        tokenizer=character_tokenizer(),
        name=architecture,
        max_tokens=64,
        placement=placement,
    )


def stir_adapters(lm: LanguageModel, *, seed: int = 7) -> None:
    """Give B, or a core, values as after some training: with 0 half of the gradients are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, one in lm.model.named_parameters():
            if "lora_B" in name and one.requires_grad:
                one.copy_(torch.randn(one.shape, generator=generator) * 0.05)


def text(seed: int, length: int) -> str:
    return "".join(LETTERS[(seed * 31 + at * at * 7 + at * seed) % 26] for at in range(length))


def example(seed: int, *, own: bool = True) -> RationaleExample:
    return RationaleExample(
        example_id=f"e{seed}",
        prompt=text(seed, 4 + seed % 9),
        path=text(seed + 100, 3 + (seed * 5) % 11),
        rejected=text(seed + 200, 2 + (seed * 3) % 8) if own and seed % 3 else None,
    )


def units_of_sizes(*sizes: int, first: int = 0, own: bool = True) -> tuple[PrivateUnit, ...]:
    found = []
    seed = first
    for number, size in enumerate(sizes):
        examples = tuple(example(seed + at, own=own) for at in range(size))
        found.append(PrivateUnit(unit_id=f"u{first}-{number}", examples=examples))
        seed += size
    return tuple(found)


def paid(units):
    """Units as `distil` takes them: handed out against a reservation."""
    return lambda reservation: units


def opened_trainer(lm, units, *, trainer_class=Trainer, **options):
    """A trainer that has read its private units."""
    trainer = trainer_class(lm, **options)
    trainer.take_units(units)
    return trainer


class FloatSum(ClippedSum):
    """A clipped sum in floats, off the grid: what the integers are held against."""

    def __init__(self, parameters, privacy):
        super().__init__(parameters, privacy)
        self._totals = [one.double() for one in self._totals]

    def _cut_to_grid(self, blocks, factor):
        return [one.double().mul_(factor.unsqueeze(1)).sum(0) for one in blocks]

    def values(self):
        return torch.cat(self._totals)


def float_sum(trainer, units=None, *, clip=None):
    """The clipped sum of units, all of the trainer's if none are named, (d,) float64."""
    privacy = trainer.privacy if clip is None else replace(trainer.privacy, l2_clip_norm=clip)
    total = FloatSum(trainer.parameters, privacy)
    return trainer.source.clipped_sum(trainer._units if units is None else units, total).values()


def grid_sum(trainer, units=None):
    """The same on the grid, as the trainer adds it up."""
    total = ClippedSum(trainer.parameters, trainer.privacy)
    return trainer.source.clipped_sum(trainer._units if units is None else units, total)


def ticking_clock():
    """A clock that moves by a second a look."""
    moment = datetime(2030, 1, 1, tzinfo=UTC)

    def now() -> datetime:
        nonlocal moment
        moment += timedelta(seconds=1)
        return moment

    return now


def approved_ledger(*, cap: float = 400.0) -> MemoryLedger:
    """A ledger in memory whose site has approved the plan that the tests train under."""
    key = Ed25519PrivateKey.generate()
    book = MemoryLedger(
        identity=LedgerIdentity.new(site="site-1", population="patients"),
        signing_key=key,
        caps=BudgetCaps(target_delta=1e-5, total_epsilon=cap, study_epsilon=cap),
        clock=ticking_clock(),
    )
    approve(book)
    return book


def approve(book: LedgerBook) -> None:
    """Approve the tests' plan for the century."""
    book.decide(
        "approve",
        study_id="study",
        plan_hash=PLAN_HASH,
        expires=datetime(2099, 1, 1, tzinfo=UTC),
        decided_by="operator",
    )
