"""Causal language models with their tokenizers, loaded from folders on disk.

Weights are float32 throughout: on a CPU without native bfloat16 a training step in bfloat16 takes
about twenty times as long.

Truncation. `max_tokens` bounds all that a model has before it at once: the frame of its style, the
question, the path and the end token. A row that is longer loses the start of its question first,
then the end of its path; the frame is never cut. The rule looks at lengths alone: a text that was
refused here would stop a release, and so tell that it is there. Files are checked for lengths
before a study is joined.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lada_secure.data.forms import CLOZE, AnswerForm
from lada_secure.errors import ParameterError
from lada_secure.models.calling import CallingStyle, Joined, join, open_style
from lada_secure.models.calling_settings import Calling
from lada_secure.models.folder import check_folder, read_json, shown_names
from lada_secure.models.tokenizer import largest_token, load_tokenizer, spelled_controls

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A causal language model, its tokenizer, and how both are called.

    `name` is the reference it was loaded by; `max_tokens` bounds prompt and path together. `pads`:
    whether rows of one batch may be padded on the left and share a cache, as attention allows. A
    model that carries a state from token to token (Mamba, short convolutions) would carry the
    padding on as well. `spelled`: control tokens that the tokenizer makes of a text that spells
    them, by their texts. Whoever opens a study sets its `form`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    max_tokens: int
    style: CallingStyle = field(default_factory=CallingStyle)
    pads: bool = True
    spelled: Mapping[str, int] = field(default_factory=dict)
    form: AnswerForm = CLOZE

    def with_form(self, form: AnswerForm) -> LanguageModel:
        """The same model, asked and read in another form."""
        return replace(self, form=form)

    @property
    def end_token(self) -> int:
        """The token that ends a path, and pads batches (masked, so its value is without effect)."""
        return int(self.tokenizer.eos_token_id if self.style.end is None else self.style.end)

    @property
    def room(self) -> int:
        """Tokens of question, path and end token together, beside the frame of the style."""
        return self.max_tokens - self.style.tokens

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """All tokens that end what the model writes: of its turn, and of a whole text."""
        return tuple(dict.fromkeys((self.end_token, int(self.tokenizer.eos_token_id))))

    def encode_prompt(self, prompt: str, *, begun: str = "", room: int | None = None) -> list[int]:
        """Token ids of a prompt in its frame, with what is written of its path already.

        Args: room: at most so many tokens, `max_tokens` - 1 by default.
        Returns: at least one token, whatever the text is: see the module on truncation.
        """
        joined = self.join(prompt, begun)
        whole = Joined(context=joined.context + joined.target, target=(), kept=joined.kept)
        return list(whole.fitted(self.max_tokens - 1 if room is None else room)) or [self.end_token]

    def encode_rationale(self, path: str) -> list[int]:
        """The first `max_tokens` - 2 tokens of a path by itself and the end token."""
        return [*self.tokens_of(path)[: self.max_tokens - 2], self.end_token]

    def encode_pair(self, prompt: str, path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of a prompt and of the path after it, the end token included.

        They are tokenized together where the style has nothing in between: see `join`.

        Returns: each at least one token, at most `max_tokens` in all, whatever the texts are.
        """
        joined = self.join(prompt, path)
        most = self.max_tokens - 1 - max(self.style.tokens, 1)
        target = (*joined.target[:most], self.end_token)
        return joined.fitted(self.max_tokens - len(target)) or (self.end_token,), target

    def join(self, prompt: str, path: str) -> Joined:
        """Prompt and path in tokens, however long; see `lada_secure.models.calling.join`."""
        return join(self.style, self.tokens_of, prompt, path)

    def tokens_of(self, text: str) -> list[int]:
        """All token ids of a text, perhaps none; whatever the text is, without special tokens."""
        whole = _encodable(text)
        found = [int(one) for one in self._tokenized(whole)]
        if self.spelled and not set(self.spelled.values()).isdisjoint(found):
            # Cut behind the first letter of every such text: its halves spell nothing.
            starts = "|".join(map(re.escape, self.spelled))
            parts = re.split(f"(?<=(?=(?:{starts})).)", whole, flags=re.DOTALL)
            return [int(one) for part in parts if part for one in self._tokenized(part)]
        return found

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without an end token."""
        if not texts:
            return []
        if self.spelled:
            return [len(self.tokens_of(one)) for one in texts]
        return [len(one) for one in self._tokenized([_encodable(one) for one in texts])]

    def _tokenized(self, texts: str | list[str]) -> Any:
        # A text that spells a control token is a text: "<end>" in a record ends nothing.
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens; special tokens are left out."""
        return str(
            self.tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def continuation(self, context: Sequence[int], tokens: Sequence[int]) -> str:
        """Text of tokens that follow others.

        SentencePiece drops the space that a text begins with; behind other tokens it is one.
        """
        alone = self.decode(tokens)
        if self.tokenizer.backend_tokenizer.decoder is None or not context:
            return alone
        before, both = self.decode(context[-1:]), self.decode([*context[-1:], *tokens])
        return f" {alone}" if both == f"{before} {alone}" else alone


def _encodable(text: str) -> str:
    """The text with "?" for halves of characters, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def load_language_model(
    reference: str, *, cache_dir: Path, calling: Calling | None = None
) -> LanguageModel:
    """Load a model by its reference: the path of a folder, or its name in the cache folder.

    Args: reference: of a folder in the transformers format with safetensors. calling: how to call
        it; None is "plain".
    Raises: ParameterError: there is no such folder, or it does not hold a readable model.
    """
    for folder in (Path(reference), cache_dir / reference):
        if (folder / "config.json").is_file():
            return load_folder(folder, name=reference, calling=calling)
    raise ParameterError(
        f"model reference {reference!r}: expected a folder with config.json and "
        f"model.safetensors, by its path or by its name in {cache_dir}; copy the model there"
    )


def load_folder(folder: Path, *, name: str, calling: Calling | None = None) -> LanguageModel:
    """Load a model folder in the transformers format; only safetensors, never pickled weights.

    Raises: ParameterError: the folder does not hold a readable model, or not the one that its
        configuration says; see also `lada_secure.models.folder`.
    """
    check_folder(folder)
    try:
        with quiet_transformers():
            tokenizer = load_tokenizer(folder)
            _check_architecture(folder)
            model, told = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except ParameterError:
        raise
    except Exception as error:
        # The readers of weights and tokenizers raise whatever they like, plain Exception included.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ParameterError(
            f"{folder}: not a readable model folder ({first}); remove it where it is a cache, "
            "it will be made again"
        ) from error
    _check_complete(folder, told)
    _check_finite(folder, model)
    return wrap_model(model, tokenizer, name=name, calling=calling)


def _check_architecture(folder: Path) -> None:
    """Refuse what transformers would load as another class than the folder names.

    Raises: ParameterError: an architecture that is unknown, not causal, or not the one named.
    """
    kind, named = (read_json(folder / "config.json").get(key) for key in _ARCHITECTURE_KEYS)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        loads = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    except (ValueError, KeyError):
        loads = None
    if loads is None:
        raise ParameterError(
            f"{folder}: transformers {transformers.__version__} has no causal language model of "
            f"model_type {kind!r}; use a model of a known family, or a newer transformers"
        )
    known = {one.__name__ for one in (loads if isinstance(loads, tuple) else (loads,))}
    if named and not known.intersection(named):
        raise ParameterError(
            f"{folder}: config.json names the architecture {', '.join(map(str, named))}, but "
            f"model_type {kind!r} is {', '.join(sorted(known))}; copy the model's own config.json"
        )


_ARCHITECTURE_KEYS: Final = ("model_type", "architectures")


def _check_complete(folder: Path, told: Mapping[str, Any]) -> None:
    """Refuse weights that the library would have made up or left out.

    It fills what is missing at random, and drops what it has no place for.

    Raises: ParameterError: names the tensors.
    """
    reshaped = {one if isinstance(one, str) else one[0] for one in told["mismatched_keys"]}
    wrong = reshaped | set(told["missing_keys"])
    extra = set(told["unexpected_keys"]) - reshaped
    if wrong or told["error_msgs"]:
        also = f", and {len(extra)} are of no use to it" if extra else ""
        raise ParameterError(
            f"{folder}: {len(wrong)} tensors are missing or have another shape than the model's "
            f"configuration says: {shown_names(list(wrong))}{also}; copy the whole folder again"
        )
    if extra:
        raise ParameterError(
            f"{folder}: {len(extra)} tensors have no place in the model that its configuration "
            f"describes: {shown_names(list(extra))}; copy the model's own config.json"
        )


def _check_finite(folder: Path, model: PreTrainedModel) -> None:
    broken = [name for name, one in model.named_parameters() if not bool(one.isfinite().all())]
    if broken:
        raise ParameterError(
            f"{folder}: {len(broken)} tensors hold NaN or infinity: {shown_names(broken)}; the "
            "weights are broken, copy them again"
        )


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    calling: Calling | None = None,
) -> LanguageModel:
    """Put a model into evaluation mode, let it generate as it is told, and set how it is called.

    What a folder says of generation is left out: with a repetition penalty or sampling in it,
    greedy paths would not be greedy.

    Raises: ParameterError: no end token, a template that cannot be used or leaves no room, or a
        tokenizer of another model.
    """
    calling = calling or Calling()
    if tokenizer.eos_token_id is None:
        raise ParameterError(f"{name}: the tokenizer has no end token; paths could not end")
    model.eval()
    model.generation_config = GenerationConfig()
    # Families without position embeddings (ALiBi) have no limit of their own.
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or calling.max_tokens
    found = LanguageModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        max_tokens=min(int(positions), calling.max_tokens),
        style=open_style(calling, tokenizer, name=name),
        pads=not _carries_state(model),
        spelled=spelled_controls(tokenizer),
    )
    rows = int(model.get_input_embeddings().weight.shape[0])
    largest = largest_token(
        tokenizer, used=(*found.style.head, *found.style.tail, *found.end_tokens)
    )
    if largest >= rows:
        raise ParameterError(
            f"{name}: its tokenizer has a token {largest}, the model has {rows} rows of "
            "embeddings; tokenizer and weights are of different models"
        )
    if 2 * found.style.tokens > found.max_tokens:
        raise ParameterError(
            f"{name}: its template alone takes {found.style.tokens} of {found.max_tokens} tokens; "
            "use a shorter one, or raise max_tokens"
        )
    LOG.info(
        "%s: style %s, %d tokens around a question, at most %d in all",
        name,
        found.style.name,
        found.style.tokens,
        found.max_tokens,
    )
    return found


def _carries_state(model: PreTrainedModel) -> bool:
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
    # "linear_attention" is a recurrence, whatever its name says.
    others = [one for one in layers if not one.endswith("attention") or one.startswith("linear")]
    return bool(getattr(model, "_is_stateful", False)) or bool(others)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the terminal for a while."""
    logging_of = transformers.utils.logging
    shown, verbosity = logging_of.is_progress_bar_enabled(), logging_of.get_verbosity()
    logging_of.disable_progress_bar()
    logging_of.set_verbosity_error()
    try:
        yield
    finally:
        logging_of.set_verbosity(verbosity)
        if shown:
            logging_of.enable_progress_bar()
