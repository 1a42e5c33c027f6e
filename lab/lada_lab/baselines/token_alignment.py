"""From one tokenizer's tokens to another's, so that logits can teach a model with other tokens.

Tokens map by their text: to the same one where there is one, else to the one with the smallest edit
distance (MinED; Fan et al. 2024, arXiv 2406.02224, after Wan et al. 2024, arXiv 2401.10491). Two
token sequences of one text are aligned by the warping of smallest total edit distance. Where one
token stands against several, nothing says how probability would split, and the learner's own token
stands alone. Unlike in the papers, a token that shares no character with any of the others is
dropped rather than mapped to whichever is shortest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lada_secure.errors import ParameterError
from lada_secure.models.loading import LanguageModel

# How byte-level and sentence-piece tokenizers write a space, and the former a line break.
_MARKS = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\n"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopLogits:
    """Per target token, a teacher's k likeliest tokens, in the tokens of whoever learns.

    tokens: (t, k) int64. probabilities: (t, k) float32, rows sum to 1; entries of probability 0
    are padding.
    """

    tokens: Tensor
    probabilities: Tensor


class TokenAlignment:
    """Tokens of a teacher in terms of a learner's; the same vocabulary needs no work at all."""

    def __init__(self, teacher: LanguageModel, learner: LanguageModel) -> None:
        """Compare both vocabularies.

        Raises: ParameterError: no token of the one is a token of the other.
        """
        self._ends = (teacher.end_token, learner.end_token)
        self._texts = _texts(teacher)
        self._learner_texts = _texts(learner)
        self._learner_ids: dict[str, int] = {}
        for token, text in sorted(self._learner_texts.items()):
            self._learner_ids.setdefault(text, token)
        self.same = self._texts == self._learner_texts and len(set(self._ends)) == 1
        if not any(text in self._learner_ids for text in self._texts.values()):
            raise ParameterError(
                f"logits of {teacher.name} cannot teach {learner.name}: their tokenizers share no "
                "token. Distil whole paths instead, which needs no common token"
            )
        self._by_length: dict[int, list[tuple[str, int]]] = {}
        for text, token in self._learner_ids.items():
            self._by_length.setdefault(len(text), []).append((text, token))
        self._mapped: dict[int, int | None] = {}

    def learner_token(self, token: int) -> int | None:
        """The learner's token for one of the teacher's; None where there is nothing like it."""
        if token == self._ends[0]:
            return self._ends[1]
        if token not in self._mapped:
            text = self._texts.get(token)
            self._mapped[token] = None if text is None else self._nearest(text)
        return self._mapped[token]

    def _nearest(self, text: str) -> int | None:
        if text in self._learner_ids:
            return self._learner_ids[text]
        best: int | None = None
        least = max(*self._by_length, len(text)) + 1
        for difference in range(max(*self._by_length, len(text)) + 1):
            # Texts that differ more in length cannot be nearer than what was found.
            if difference >= least:
                break
            for length in sorted({len(text) - difference, len(text) + difference}):
                for other, token in self._by_length.get(length, ()):
                    distance = edit_distance(text, other)
                    # As large as the longer text means that nothing is shared.
                    if distance < min(least, max(len(text), len(other))):
                        best, least = token, distance
        return best

    def partners(self, teacher: Sequence[int], learner: Sequence[int]) -> list[int | None]:
        """For each of the learner's tokens, the place of the teacher's that stands for it alone."""
        pairs = warping(
            ["" if token == self._ends[0] else self._texts.get(token, "") for token in teacher],
            [
                "" if token == self._ends[1] else self._learner_texts.get(token, "")
                for token in learner
            ],
        )
        firsts = Counter(first for first, _ in pairs)
        seconds = Counter(second for _, second in pairs)
        alone = {second: first for first, second in pairs if firsts[first] == seconds[second] == 1}
        return [alone.get(pool_index) for pool_index in range(len(learner))]

    def carried(self, top: TopLogits, teacher: Sequence[int], learner: Sequence[int]) -> TopLogits:
        """A teacher's logits about its own target tokens as logits about the learner's.

        Args: top: (t, k) about `teacher`, the teacher's target tokens; `learner`: the learner's u
            target tokens of the same text.
        Returns: (u, k) in the learner's tokens. All probability lies on the learner's own token
            where the alignment says nothing.
        """
        if self.same:
            return top
        width = top.tokens.shape[1]
        tokens = torch.zeros((len(learner), width), dtype=torch.int64)
        shares = torch.zeros((len(learner), width), dtype=torch.float32)
        for at, (partner, own) in enumerate(
            zip(self.partners(teacher, learner), learner, strict=True)
        ):
            known = {} if partner is None else self._row(top, partner, width)
            known = known or {own: 1.0}
            total = sum(known.values())
            tokens[at, : len(known)] = torch.tensor(list(known))
            shares[at, : len(known)] = torch.tensor([share / total for share in known.values()])
        device = top.tokens.device
        return TopLogits(tokens=tokens.to(device), probabilities=shares.to(device))

    def _row(self, top: TopLogits, pool_index: int, width: int) -> dict[int, float]:
        found: dict[int, float] = {}
        tokens: list[int] = top.tokens[pool_index].tolist()
        shares: list[float] = top.probabilities[pool_index].tolist()
        for token, share in zip(tokens, shares, strict=True):
            mapped = self.learner_token(token)
            if mapped is not None and share > 0.0:
                found[mapped] = found.get(mapped, 0.0) + share
        return dict(list(found.items())[:width])


def _texts(lm: LanguageModel) -> dict[int, str]:
    """Text of every token that is not a special one, by id."""
    special = set(lm.tokenizer.all_special_ids)
    vocabulary: dict[str, int] = lm.tokenizer.get_vocab()
    return {
        token: raw.translate(_MARKS) for raw, token in vocabulary.items() if token not in special
    }


@lru_cache(maxsize=65_536)
def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions and replacements of characters that turn one text into the other."""
    row = list(range(len(second) + 1))
    for number, one in enumerate(first, start=1):
        above, row = row, [number]
        for pool_index, other in enumerate(second, start=1):
            row.append(
                min(above[pool_index] + 1, row[-1] + 1, above[pool_index - 1] + (one != other))
            )
    return row[-1]


def warping(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of places that align two sequences at the smallest total edit distance, in order.

    Every place is in at least one pair. Among equals, a step in both sequences comes first.

    Raises: ParameterError: an empty sequence.
    """
    if not first or not second:
        raise ParameterError("aligning tokens: expected at least one on both sides")
    cost = np.array([[edit_distance(one, other) for other in second] for one in first], dtype=float)
    total = np.full((len(first) + 1, len(second) + 1), np.inf)
    total[0, 0] = 0.0
    for row in range(1, len(first) + 1):
        for column in range(1, len(second) + 1):
            before = min(total[row - 1, column - 1], total[row - 1, column], total[row, column - 1])
            total[row, column] = cost[row - 1, column - 1] + before
    pairs: list[tuple[int, int]] = []
    row, column = len(first), len(second)
    while row > 0 and column > 0:
        pairs.append((row - 1, column - 1))
        steps = ((row - 1, column - 1), (row - 1, column), (row, column - 1))
        row, column = min(steps, key=lambda step: float(total[step]))
    return pairs[::-1]
