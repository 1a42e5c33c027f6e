"""A small model that has learned a few questions in every answer form, by heart."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from lada_secure.data.forms import FORMS, FormName, answer_form
from lada_secure.data.records import PoolSample, Record
from lada_secure.data.verification import EXACT, Verifier
from lada_secure.models.examples import encode_row
from lada_secure.models.loading import LanguageModel

CHARACTERS = ["\n", *(chr(code) for code in range(32, 127))]
MAX_STEPS = 400

# Question, options, answer, reason; the last two are open.
TAUGHT: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("Big cat?", ("pig", "lion", "cow"), "lion", "it has a mane"),
    ("Says moo?", ("cow", "pig", "lion"), "cow", "it gives milk"),
    ("Pink one?", ("lion", "cow", "pig"), "pig", "it likes mud"),
    ("King of beasts?", ("lion", "pig", "cow"), "lion", "it roars"),
    ("2+2", (), "4", "two twos"),
    ("3+5", (), "8", "five and three"),
)


def taught_samples() -> tuple[PoolSample, ...]:
    return tuple(
        PoolSample(sample_id=f"q{at}", question=question, choices=choices, answer=answer)
        for at, (question, choices, answer, _) in enumerate(TAUGHT)
    )


def taught_records(*, bare: bool) -> tuple[Record, ...]:
    return tuple(
        Record(
            record_id=f"r{at}",
            unit=f"u{at // 2}",
            question=question,
            choices=choices,
            answer=answer,
            rationale=None if bare else reason,
        )
        for at, (question, choices, answer, reason) in enumerate(TAUGHT)
    )


def form_model(name: FormName, verifier: Verifier = EXACT) -> LanguageModel:
    """The model, asked in one form."""
    return _taught().with_form(answer_form(name, verifier))


@cache
def _taught() -> LanguageModel:
    lm = _untaught()
    rows = [
        encode_row(lm, form().prompt(question, choices), form().target(answer, choices, reason))
        for form in FORMS.values()
        for question, choices, answer, reason in TAUGHT
    ]
    longest = max(len(row.tokens) for row in rows)
    ids = torch.full((len(rows), longest), lm.end_token)
    targets = torch.full((len(rows), longest), -100)
    for at, row in enumerate(rows):
        ids[at, : len(row.tokens)] = torch.tensor(row.tokens)
        targets[at, row.target_start : len(row.tokens)] = torch.tensor(row.tokens)[
            row.target_start :
        ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimiser = torch.optim.AdamW(lm.model.parameters(), lr=6e-3)
        for _ in range(MAX_STEPS):
            logits = lm.model(input_ids=ids).logits[:, :-1]
            loss = functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            if loss.item() < 0.02:
                break
    lm.model.requires_grad_(False)
    return lm


def _untaught() -> LanguageModel:
    vocabulary = {"<pad>": 0, "<end>": 1, "<unk>": 2}
    vocabulary |= {character: at + 3 for at, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.eval()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    return LanguageModel(model=model, tokenizer=wrapped, name="taught", max_tokens=256)
