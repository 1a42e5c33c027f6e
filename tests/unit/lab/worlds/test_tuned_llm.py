"""The LLM is tuned on public records, repeatably, and ends up better at them."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lada_lab.worlds.character_models import character_tokenizer
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.tuned_llm import Tuning, tune
from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.errors import ParameterError
from lada_secure.models.evaluation import rationale_log_probabilities
from lada_secure.models.loading import LanguageModel, wrap_model

SETTINGS = Tuning(steps=30, batch_size=8, learning_rate=1e-2, last_layers=2, threads=1)


def small_model() -> LanguageModel:
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    return wrap_model(model, tokenizer, name="small")


def test_tuning_raises_the_probability_of_the_public_paths() -> None:
    records = build_federation("tiny", sites=3, seed=0).teacher[:64]
    prompts = [prompt_of(one.question, one.choices) for one in records]
    paths = [rationale_of(one.answer, one.choices, one.rationale) for one in records]
    lm = small_model()
    before = rationale_log_probabilities(lm, prompts, paths, batch_size=32).mean.mean()
    tuned = wrap_model(tune(lm, records, SETTINGS, seed=1), lm.tokenizer, name="tuned")
    after = rationale_log_probabilities(tuned, prompts, paths, batch_size=32).mean.mean()
    assert after > before + 0.1
    assert not any("lora" in name for name, _ in tuned.model.named_parameters())


def test_tuning_twice_gives_the_same_weights() -> None:
    records = build_federation("tiny", sites=3, seed=0).teacher[:32]
    settings = Tuning(steps=3, batch_size=4, last_layers=1, threads=1)
    first, second = (tune(small_model(), records, settings, seed=4) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_tuning_without_records_is_refused() -> None:
    with pytest.raises(ParameterError, match="public records"):
        tune(small_model(), [], SETTINGS, seed=0)
