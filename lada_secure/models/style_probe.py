"""Which style a model answers best in, on a few public questions.

A base model in a chat template, or a chat model without one, loses what it knows without a word
about it. The questions are public and the model is its owner's, so this costs no privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.calling import CallingStyle, open_style
from lada_secure.models.calling_settings import STYLES, Calling
from lada_secure.models.evaluation import ANSWER_TOKENS, correct
from lada_secure.models.text_model import TextModel
from lada_secure.ranges import at_least

# One-sided: in so many of a hundred probes a style that is no worse is warned about.
_NOISE: Final = 0.025


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StyleScore:
    """What a model answered in one style. right: (n,) bool, in the order of the questions."""

    style: CallingStyle
    right: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """Share of right answers, in [0, 1]."""
        return float(np.mean(self.right))

    @property
    def standard_error(self) -> float:
        """Of `accuracy`, over the draw of the questions."""
        share = self.accuracy
        return float(np.sqrt(share * (1.0 - share) / len(self.right)))

    def figures(self) -> dict[str, float]:
        """For programs: in percent, to a tenth."""
        return {
            "right_percent": round(100 * self.accuracy, 1),
            "standard_error": round(100 * self.standard_error, 1),
        }

    def __str__(self) -> str:
        return f'"{self.style.name}" {self.accuracy:.1%} (standard error {self.standard_error:.1%})'


def probe_styles(
    lm: TextModel,
    samples: Sequence[PoolSample],
    *,
    batch_size: int,
    max_new_tokens: int = ANSWER_TOKENS,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> tuple[StyleScore, ...]:
    """Answer public questions in the model's own style, first, and in the others that it has.

    Multiple choice by the options' probabilities, open questions by what is written; the model
    keeps the answer form that it has.

    Args: samples: n >= 1; some 50 tell 20 points apart, some 200 tell 10. progress: told how many
        answers of how many there are.
    Raises: ParameterError: no samples, or sizes below 1.
    """
    if not samples:
        raise ParameterError("comparing styles needs at least one public question")
    at_least(1, batch_size=batch_size)
    styles = _styles(lm)
    whole, done = len(styles) * len(samples), 0
    scores = []
    for style in styles:
        asked = replace(lm, style=style)
        right = []
        for first in range(0, len(samples), batch_size):
            part = samples[first : first + batch_size]
            right.append(correct(asked, part, batch_size=batch_size, max_new_tokens=max_new_tokens))
            done += len(part)
            progress(done, whole)
        scores.append(StyleScore(style=style, right=np.concatenate(right)))
    return tuple(scores)


def _styles(lm: TextModel) -> list[CallingStyle]:
    """The model's own style, and others that its tokenizer has."""
    styles = [lm.style]
    for name in STYLES:
        try:
            other = open_style(Calling(style=name), lm.tokenizer, name=lm.name)
        except ParameterError:
            # The tokenizer has no such style, so there is nothing to lose against.
            continue
        if other not in styles and 2 * other.tokens <= lm.max_tokens:
            styles.append(other)
    return styles


def style_warning(lm: TextModel, scores: Sequence[StyleScore]) -> str | None:
    """What to tell whoever chose a style that loses by more than noise; None where it does not.

    The exact sign test over the questions that one style alone answers rightly: both styles answer
    the same questions, so what they have in common says nothing.

    Args: scores: of `probe_styles`, the chosen style first.
    """
    chosen, *others = scores
    ahead = [
        one
        for one in others
        if _sign_test(
            wins=int((one.right & ~chosen.right).sum()),
            losses=int((chosen.right & ~one.right).sum()),
        )
        < _NOISE
    ]
    if not ahead:
        return None
    best = max(ahead, key=lambda one: one.accuracy)
    return (
        f"{lm.name}: of {len(chosen.right)} public questions, style {chosen} is right, style "
        f'{best}: more than noise. Set style = "{best.style.name}" in the table [model] of the '
        "settings"
    )


def _sign_test(*, wins: int, losses: int) -> float:
    """Probability of so many wins or more if both were as good; 1 where nothing differs."""
    draws = wins + losses
    found: float = sum(comb(draws, won) for won in range(wins, draws + 1)) / 2**draws
    return found
