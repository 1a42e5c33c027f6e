"""A served LLM as the method calls it: the tokenizer is here, what it computes is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from lada_secure.arrays import FloatArray
from lada_secure.models.endpoint.completions import Completions
from lada_secure.models.forward import Tokens
from lada_secure.models.text_model import TextModel


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointModel(TextModel):
    """See `TextModel`. Batch sizes are the server's own affair and are not used.

    Every method raises TransportError where the server does not answer, and ParameterError where it
    refuses or has become another one.
    """

    served: Completions

    def reads_as_meant(self, tokens: Tokens) -> bool:
        """See `TextModel`."""
        return list(self.served.dialect.settled(tokens, 1)[0]) == list(tokens)

    def target_log_probabilities(
        self, rows: Sequence[Tokens], targets: Sequence[int], *, batch_size: int
    ) -> FloatArray:
        """See `TextModel`."""
        return np.array(self.served.target_scores(rows, targets), dtype=np.float64)

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
        """See `TextModel`."""
        written = self.served.continuations(
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        return [
            text if tokens is None else self._text(prompt, tokens)
            for prompt, (text, tokens) in zip(prompts, written, strict=True)
        ]

    def _text(self, prompt: Tokens, tokens: Tokens) -> str:
        own = list(takewhile(lambda token: token not in self.end_tokens, tokens))
        return self.continuation(prompt, own)
