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
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lada_secure.arrays import FloatArray
from lada_secure.errors import ParameterError
from lada_secure.models.calling import (
    CallingStyle,
    Joined,
    control_texts,
    join,
    open_style,
    own_front,
)
from lada_secure.models.calling_settings import Calling
from lada_secure.models.folder import check_folder, read_json, shown_names
from lada_secure.models.forward import (
    OptionTokens,
    Tokens,
    continuations,
    option_scores,
    target_scores,
)

LOG = logging.getLogger(__name__)

# Spaces, line breaks, digits, marks and letters of several scripts: where tokenizers differ.
_SAMPLE: Final = (
    "Group?\nAnswer:  42 1,000.5\n\n\tNaïve, e.g. GmbH's Über-größe "
    "\u65e5\u672c \u0434\u0430 \U0001f600"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel(ABC):
    """A causal language model as the method calls it, wherever its weights are.

    The tokenizer is always on this machine; what a model computes is computed here or by a server.
    `name` is the reference it was loaded by; `max_tokens` bounds prompt and path together.
    `spelled`: control tokens that the tokenizer makes of a text that spells them, by their texts.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    max_tokens: int
    style: CallingStyle = field(default_factory=CallingStyle)
    spelled: Mapping[str, int] = field(default_factory=dict)

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

    def option_log_probabilities(
        self, asked: Sequence[OptionTokens], *, batch_size: int
    ) -> list[FloatArray]:
        """Log-probability per token of every option after its prompt, one array per question."""
        return self.whole_option_log_probabilities(asked, batch_size=batch_size)

    def whole_option_log_probabilities(
        self, asked: Sequence[OptionTokens], *, batch_size: int
    ) -> list[FloatArray]:
        """The same, with the prompt read again for every option."""
        rows = [row for one in asked for row in one.rows]
        lengths = [length for one in asked for length in one.lengths]
        scores = self.target_log_probabilities(rows, lengths, batch_size=batch_size)
        means = iter(scores / np.array(lengths, dtype=np.float64))
        return [np.array([next(means) for _ in one.options]) for one in asked]

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
    """A causal language model whose weights are on this machine.

    `pads`: whether rows of one batch may be padded on the left and share a cache, as attention
    allows. A model that carries a state from token to token (Mamba, short convolutions) would carry
    the padding on as well.
    """

    model: PreTrainedModel
    pads: bool = True

    def target_log_probabilities(
        self, rows: Sequence[Tokens], targets: Sequence[int], *, batch_size: int
    ) -> FloatArray:
        """See `TextModel`."""
        pad = self.end_token if self.pads else None
        return target_scores(self.model, rows, targets, pad=pad, batch_size=batch_size)

    def option_log_probabilities(
        self, asked: Sequence[OptionTokens], *, batch_size: int
    ) -> list[FloatArray]:
        """See `TextModel`; a prompt is read once where the model can share a cache."""
        if not self.pads:
            return self.whole_option_log_probabilities(asked, batch_size=batch_size)
        return option_scores(
            self.model,
            asked,
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
            ends=self.end_tokens,
            pads=self.pads,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
        return [
            self.continuation(prompt, own) for prompt, own in zip(prompts, written, strict=True)
        ]


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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of tokenizer.json, with the special tokens and template of its configuration.

    Some of the library's classes build another tokenizer than the file holds, with their own idea
    of spaces and special tokens; then the file counts.
    """
    found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    written = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if any(
        found(_SAMPLE, add_special_tokens=special)["input_ids"]
        != written.encode(_SAMPLE, add_special_tokens=special).ids
        for special in (False, True)
    ):
        template = found.chat_template
        found = PreTrainedTokenizerFast(
            tokenizer_object=written,
            clean_up_tokenization_spaces=False,
            **found.special_tokens_map,
        )
        found.chat_template = template
    _put_in_front(found, read_json(folder / "tokenizer_config.json").get("add_bos_token"))
    # Marks such as "<think>" that are not listed as special: in a record they are text as well.
    found.backend_tokenizer.add_special_tokens(
        [
            AddedToken(
                text, special=True, normalized=False, lstrip=token.lstrip, rstrip=token.rstrip
            )
            for text, token in control_texts(found).items()
            if not token.special
        ]
    )
    return found


def _put_in_front(tokenizer: PreTrainedTokenizerBase, adds_bos: object) -> None:
    """Obey a configuration that says whether a text begins with the BOS token."""
    bos, has = tokenizer.bos_token, tokenizer.bos_token_id in own_front(tokenizer)
    if not isinstance(adds_bos, bool) or bos is None or adds_bos == has:
        return
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A" if adds_bos else "$A",
        special_tokens=[(bos, tokenizer.bos_token_id)],
    )


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
    _check_vocabulary(found)
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


def spelled_controls(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Control tokens that come out of their texts although they are not looked for.

    A Unigram vocabulary lists them among its pieces. The unknown token means nothing and stays.
    """
    texts = [text for text in control_texts(tokenizer) if text != tokenizer.unk_token]
    if not texts:
        return {}
    told = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = tokenizer.convert_tokens_to_ids(texts)
    return {
        text: int(token)
        for text, token, found in zip(texts, ids, told, strict=True)
        if token in found
    }


def _carries_state(model: PreTrainedModel) -> bool:
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
    # "linear_attention" is a recurrence, whatever its name says.
    others = [one for one in layers if not one.endswith("attention") or one.startswith("linear")]
    return bool(getattr(model, "_is_stateful", False)) or bool(others)


def _check_vocabulary(lm: LanguageModel) -> None:
    """Refuse a tokenizer whose tokens the model has no rows for.

    Added tokens beyond the last row (placeholders for images) come from no text: controls are text.
    """
    backend, rows = lm.tokenizer.backend_tokenizer, lm.model.get_input_embeddings().weight.shape[0]
    controls = control_texts(lm.tokenizer)
    added = backend.get_added_tokens_decoder()
    plain = [token for token, one in added.items() if one.content not in controls]
    own = backend.get_vocab(with_added_tokens=False)
    framed = (*lm.style.head, *lm.style.tail, *lm.end_tokens)
    # The model's own vocabulary lists control tokens as well, under the same numbers.
    largest = max(
        (*plain, *framed, *(token for text, token in own.items() if text not in controls))
    )
    if largest >= rows:
        raise ParameterError(
            f"{lm.name}: its tokenizer has a token {largest}, the model has {rows} rows of "
            "embeddings; tokenizer and weights are of different models"
        )


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
