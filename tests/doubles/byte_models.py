"""Small models of other families whose tokens are bytes: they share none with characters."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

_SPECIAL = ("[pad]", "[stop]", "[unknown]")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte of UTF-8, spelled as SentencePiece spells bytes."""
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    raw = Tokenizer(models.BPE(vocabulary, [], unk_token="[unknown]", byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[pad]",
        eos_token="[stop]",
        unk_token="[unknown]",
        clean_up_tokenization_spaces=False,
    )


def byte_model_folder(folder: Path, family: str, *, positions: int = 256, seed: int = 0) -> Path:
    """A folder with random weights. family: "qwen2" or "gemma3"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_configuration(family, positions))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _configuration(family: str, positions: int) -> PretrainedConfig:
    size = {
        "vocab_size": len(_SPECIAL) + 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": positions,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "initializer_range": 0.1,
    }
    if family == "qwen2":
        return Qwen2Config(**size)
    return Gemma3TextConfig(head_dim=8, sliding_window=16, **{**size, "hidden_size": 48})
