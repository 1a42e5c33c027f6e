"""Causal language models with their tokenizers, loaded from folders on disk.

Weights are float32 throughout: on a CPU without native bfloat16 a training step in bfloat16 takes
about twenty times as long.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lada_secure.arrays import FloatArray
from lada_secure.errors import ParameterError
from lada_secure.models.forward import Tokens, continuations, option_scores, target_scores

# Longer texts would only be cut silently somewhere else; every text of the presets fits easily.
MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel(ABC):
    """A causal language model as the method calls it, wherever its weights are.

    The tokenizer is always on this machine; what a model computes is computed here or by a server.
    `name` is the reference it was loaded by; `max_tokens` bounds prompt and path together.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    max_tokens: int

    @property
    def end_token(self) -> int:
        """The token that ends a path, and pads batches (masked, so its value is without effect)."""
        return int(self.tokenizer.eos_token_id)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a prompt, without any special token: the last `max_tokens` - 1 of it.

        Total, as `encode_rationale` is: see `tokens_of`.
        """
        return self.tokens_of(prompt)[1 - self.max_tokens :] or [self.end_token]

    def encode_rationale(self, path: str) -> list[int]:
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
        return [int(one) for one in self._tokenized(_encodable(text))]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without an end token."""
        if not texts:
            return []
        return [len(one) for one in self._tokenized([_encodable(one) for one in texts])]

    def _tokenized(self, texts: str | list[str]) -> Any:
        # A text that spells a control token is a text: "<end>" in a record ends nothing.
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def decode(self, tokens: list[int]) -> str:
        """Text of generated tokens; special tokens are left out."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def reads_as_meant(self, _tokens: Tokens) -> bool:
        """Whether the model is given these tokens and no others; a server may make its own."""
        return True

    @abstractmethod
    def target_log_probabilities(
        self, rows: Sequence[Tokens], targets: Sequence[int], *, batch_size: int
    ) -> FloatArray:
        """Joint log-probability of the last tokens of each row after the ones before, (n,) nats.

        Args: targets: per row, how many of its last tokens are the target, >= 1 and fewer than
            all. batch_size: >= 1, rows at a time on this machine.
        """

    @abstractmethod
    def option_log_probabilities(
        self, prompts: Sequence[Tokens], options: Sequence[Sequence[Tokens]], *, batch_size: int
    ) -> list[FloatArray]:
        """Log-probability per token of every option after its prompt, one array per prompt."""

    @abstractmethod
    def continuations(
        self,
        prompts: Sequence[Tokens],
        *,
        batch_size: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[str]:
        """The text that the model writes after each prompt, up to its end token.

        Args: temperature: 0 is greedy. seed: of the sampling, not for privacy.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel(TextModel):
    """A causal language model whose weights are on this machine."""

    model: PreTrainedModel

    def target_log_probabilities(
        self, rows: Sequence[Tokens], targets: Sequence[int], *, batch_size: int
    ) -> FloatArray:
        """See `TextModel`."""
        return target_scores(self.model, rows, targets, pad=self.end_token, batch_size=batch_size)

    def option_log_probabilities(
        self, prompts: Sequence[Tokens], options: Sequence[Sequence[Tokens]], *, batch_size: int
    ) -> list[FloatArray]:
        """See `TextModel`."""
        return option_scores(
            self.model,
            prompts,
            options,
            pad=self.end_token,
            max_tokens=self.max_tokens,
            batch_size=batch_size,
        )

    def continuations(
        self,
        prompts: Sequence[Tokens],
        *,
        batch_size: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[str]:
        """See `TextModel`."""
        written = continuations(
            self.model,
            prompts,
            end=self.end_token,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
        return [self.decode(tokens) for tokens in written]


def _encodable(text: str) -> str:
    """The text with "?" for halves of characters, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def load_language_model(reference: str, *, cache_dir: Path) -> LanguageModel:
    """Load a model by its reference: the path of a folder, or its name in the cache folder.

    Args: reference: of a folder in the transformers format with safetensors.
    Raises: ParameterError: there is no such folder, or it does not hold a readable model.
    """
    for folder in (Path(reference), cache_dir / reference):
        if (folder / "config.json").is_file():
            return load_folder(folder, name=reference)
    raise ParameterError(
        f"model reference {reference!r}: expected a folder with config.json and "
        f"model.safetensors, by its path or by its name in {cache_dir}; copy the model there"
    )


def load_folder(folder: Path, *, name: str) -> LanguageModel:
    """Load a model folder in the transformers format; only safetensors, never pickled weights.

    Raises: ParameterError: the folder does not hold a readable model.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, told = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:
        # The readers of weights and tokenizers raise whatever they like, plain Exception included.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ParameterError(
            f"{folder}: not a readable model folder ({first}); remove it where it is a cache, "
            "it will be made again"
        ) from error
    _check_complete(folder, told)
    return wrap_model(model, tokenizer, name=name)


def _check_complete(folder: Path, told: Mapping[str, Any]) -> None:
    """Refuse weights that the library would have made up: it fills what is missing at random.

    Raises: ParameterError: names the tensors.
    """
    reshaped = {one if isinstance(one, str) else one[0] for one in told["mismatched_keys"]}
    wrong = sorted(reshaped | set(told["missing_keys"]))
    if wrong or told["error_msgs"]:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ParameterError(
            f"{folder}: {len(wrong)} tensors are missing or have another shape than the model's "
            f"configuration says: {', '.join(wrong[:5])}{more}; copy the whole folder again"
        )


def wrap_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str
) -> LanguageModel:
    """Put a model into evaluation mode, let it generate as it is told, and set its token limit.

    What a folder says of generation is left out: with a repetition penalty or sampling in it,
    greedy paths would not be greedy.

    Raises: ParameterError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ParameterError(f"{name}: the tokenizer has no end token; paths could not end")
    model.eval()
    model.generation_config = GenerationConfig()
    # Families without position embeddings (ALiBi) have no limit of their own.
    positions = getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS
    limit = min(int(positions), MAX_TOKENS)
    return LanguageModel(model=model, tokenizer=tokenizer, name=name, max_tokens=limit)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars off the terminal for a while, then restore the setting."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
