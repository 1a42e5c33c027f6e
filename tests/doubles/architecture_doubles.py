"""Small models of every family that sites may have, with random weights and real tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from tokenizer_doubles import CHAT, small_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from lada_secure.models.calling_settings import Calling
from lada_secure.models.loading import LanguageModel, wrap_model

torch.set_num_threads(1)

BYTES: Final = "byte-level BPE"
# Of a window: shorter than the tests' prompts and options.
WINDOW: Final = 6
# How each family's own tokenizers cut a text, and whether they put a BOS token in front.
FAMILIES: Final[dict[str, tuple[str, bool]]] = {
    "Llama": (BYTES, True),
    "Qwen2": (BYTES, False),
    "Qwen3": (BYTES, False),
    "Gemma 2": ("replaced-space BPE with byte fallback", True),
    "Gemma 3": ("replaced-space BPE with byte fallback", True),
    "Phi-3": ("replaced-space BPE with dummy prefix", False),
    "Mistral": ("metaspace BPE", True),
    "GPT-2": (BYTES, False),
    "GPT-NeoX": (BYTES, False),
    "OPT": (BYTES, True),
    "BLOOM": (BYTES, False),
    "LFM2": (BYTES, True),
    "Falcon-H1": (BYTES, False),
    "Mamba": (BYTES, False),
}


def family_configuration(family: str, vocabulary: int) -> PretrainedConfig:
    """A few layers of a family, with as many rows of embeddings as the tokenizer has tokens."""
    tokens: dict[str, Any] = {
        "vocab_size": vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    shared: dict[str, Any] = {
        **tokens,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    alternating = ["sliding_attention", "full_attention"]
    makers = {
        "Llama": lambda: LlamaConfig(**shared),
        "Qwen2": lambda: Qwen2Config(**shared),
        "Qwen3": lambda: Qwen3Config(**shared, head_dim=8, tie_word_embeddings=True),
        "Gemma 2": lambda: Gemma2Config(**shared, head_dim=8, sliding_window=WINDOW),
        "Gemma 3": lambda: Gemma3TextConfig(
            **shared, head_dim=8, sliding_window=WINDOW, layer_types=alternating
        ),
        "Phi-3": lambda: Phi3Config(**shared, sliding_window=WINDOW),
        "Mistral": lambda: MistralConfig(**shared, head_dim=8, sliding_window=WINDOW),
        "GPT-2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512, **tokens),
        "GPT-NeoX": lambda: GPTNeoXConfig(
            **tokens,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
        ),
        "OPT": lambda: OPTConfig(
            **tokens,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            word_embed_proj_dim=32,
        ),
        "BLOOM": lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=4, **tokens),
        "LFM2": lambda: Lfm2Config(
            **shared, layer_types=["conv", "full_attention"], block_ff_dim=64, conv_L_cache=3
        ),
        "Falcon-H1": lambda: FalconH1Config(
            **shared,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_n_groups=1,
            mamba_d_state=8,
            mamba_chunk_size=8,
        ),
        "Mamba": lambda: MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **tokens),
    }
    return makers[family]()


def family_model(family: str, vocabulary: int, *, seed: int = 0) -> PreTrainedModel:
    """A family's model, with weights wide enough that probabilities differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(family_configuration(family, vocabulary))
        for one in model.parameters():
            if one.dim() > 1:
                torch.nn.init.normal_(one, std=0.15)
    return model.eval()


def family_tokenizer(family: str, *, chat: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's kind."""
    kind, bos = FAMILIES[family]
    return small_tokenizer(kind, bos=bos, chat=CHAT if chat else None)


def family_folder(family: str, folder: Path, *, seed: int = 0) -> Path:
    """A folder as its maker would publish it."""
    tokenizer = family_tokenizer(family)
    family_model(family, len(tokenizer), seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small_lm(
    tokenizer: PreTrainedTokenizerFast,
    *,
    family: str = "Llama",
    calling: Calling | None = None,
    seed: int = 0,
) -> LanguageModel:
    """A model in memory that is called as said."""
    model = family_model(family, len(tokenizer), seed=seed)
    return wrap_model(model, tokenizer, name=family, calling=calling)
