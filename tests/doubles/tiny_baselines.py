"""Untrained models of a few thousand weights, with tokenizers of any tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lada_secure.data.records import PoolSample
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.loading import LanguageModel, wrap_model

END = "<end>"
CHARACTERS = [*"0123456789abcdef", "\n"]
torch.set_num_threads(1)


def lm_with_tokens(
    name: str,
    tokens: Sequence[str],
    *,
    seed: int = 0,
    width: int = 16,
    max_tokens: int = 64,
    adapters: bool = False,
) -> LanguageModel:
    """A model that reads text greedily as the longest of its tokens."""
    vocabulary = {token: number for number, token in enumerate([END, "<unk>", *tokens])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    known = "|".join(sorted(map(_quoted, tokens), key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{known}|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=max_tokens,
                initializer_range=0.3,
                bos_token_id=None,
                eos_token_id=0,
                pad_token_id=0,
            )
        )
    lm = wrap_model(
        model,
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token="<unk>"
        ),
        name=name,
    )
    if not adapters:
        return lm
    return attach_adapters(
        lm, AdapterSettings(rank=2, alpha=4.0, target_modules=("q_proj", "v_proj"), seed=seed)
    )


def _quoted(token: str) -> str:
    return token.replace("\n", "\\n")


def pool_of(*questions: str) -> tuple[PoolSample, ...]:
    """Samples that all have the answer 1."""
    return tuple(
        PoolSample(sample_id=f"pool-{number}", question=one, choices=(), answer="1")
        for number, one in enumerate(questions)
    )
