"""Small Llama models that read one character a token, trained here on public text, in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lada_lab.worlds.arithmetic import COMMON, DOMAIN_SYMBOLS, MODULUS
from lada_lab.worlds.model_cache import cached_folder
from lada_secure.models.loading import quiet_transformers

END = "<end>"
_PAD, _UNKNOWN = "<pad>", "<unk>"
_MAX_POSITIONS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """Shape of one model, and how long and how fast it is trained."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    steps: int
    batch_size: int
    learning_rate: float = 5e-3


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character: digits, operators, line break; with the usual interface."""
    characters = [*(str(digit) for digit in range(MODULUS)), *COMMON, *DOMAIN_SYMBOLS, "\n"]
    tokens = [_PAD, END, _UNKNOWN, *sorted(characters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=END,
        unk_token=_UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def kept_model(cache_dir: Path, name: str, train: Callable[[], LlamaForCausalLM]) -> Path:
    """The folder of a model in the transformers format, trained where it is not in the cache yet.

    Raises: ParameterError: a cache that cannot be written.
    """

    def build(folder: Path) -> None:
        model = train()
        with quiet_transformers():
            model.save_pretrained(folder)
            character_tokenizer().save_pretrained(folder)

    return cached_folder(cache_dir, name, build)


def train_model(
    settings: Pretraining, loss_of: Callable[[LlamaForCausalLM], torch.Tensor], *, seed: int
) -> LlamaForCausalLM:
    """Train a model from its initial weights by the losses of fresh batches.

    Uses one thread: at this size two only wait for each other, for minutes on a busy machine. The
    global random state of torch and its number of threads are left as they were.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(_config(settings))
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        model.train()
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(step, settings.steps)
            loss = loss_of(model)
            optimizer.zero_grad()
            torch.autograd.backward([loss])
            optimizer.step()
        return model.eval()
    finally:
        torch.set_num_threads(threads)


def _schedule(step: int, steps: int) -> float:
    """Warm-up over 20 steps, constant, then linearly down over the last 40%."""
    done = step / steps
    return min(1.0, (step + 1) / 20) * (1.0 if done < 0.6 else max(0.03, (1 - done) / 0.4))


def _config(settings: Pretraining) -> LlamaConfig:
    tokenizer = character_tokenizer()
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
