"""What the method asks of a causal language model: tokens here, computation wherever it is.

Truncation. `max_tokens` bounds all that a model has before it at once: the frame of its style, the
question, the path and the end token. A row that is longer loses the start of its question first,
then the end of its path; the frame is never cut. The rule looks at lengths alone: a text that was
refused here would stop a release, and so tell that it is there. Files are checked for lengths
before a study is joined.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from transformers import PreTrainedTokenizerBase

from lada_secure.arrays import FloatArray
from lada_secure.data.forms import CLOZE, AnswerForm
from lada_secure.models.calling import CallingStyle, Joined, join
from lada_secure.models.forward import OptionTokens, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTexts:
    """How a causal language model reads and writes texts; needs none of its weights.

    `name` is the reference it was loaded by; `max_tokens` bounds prompt and path together.
    `spelled`: control tokens that the tokenizer makes of a text that spells them, by their texts.
    Whoever opens a study sets its `form`.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    max_tokens: int
    style: CallingStyle = field(default_factory=CallingStyle)
    spelled: Mapping[str, int] = field(default_factory=dict)
    form: AnswerForm = CLOZE

    def with_form(self, form: AnswerForm) -> Self:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel(ModelTexts, ABC):
    """A causal language model as the method calls it, wherever its weights are.

    The tokenizer is always on this machine; what a model computes is computed here or by a server.
    """

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
        top_p: float,
        seed: int,
    ) -> list[str]:
        """The text that the model writes after each prompt, up to its end token.

        Args: temperature: 0 is greedy. top_p: in (0, 1], see `evaluation.generate_texts`. seed: of
            the sampling, not for privacy.
        """


def _encodable(text: str) -> str:
    """The text with "?" for halves of characters, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
