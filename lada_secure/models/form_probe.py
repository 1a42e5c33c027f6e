"""Which answer forms a model can do, measured on public questions.

A pretrained model may answer by an option's text and stay at chance on its letter, or know the
letter and never end its reasoning in an answer that can be read. Which of these holds is a property
of the model and of the questions, so it is measured and not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lada_secure.arrays import BoolArray
from lada_secure.data.forms import FORMS, FormName, answer_form
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.confidence import answer_pool
from lada_secure.models.evaluation import greedy_rationales
from lada_secure.models.text_model import TextModel
from lada_secure.ranges import at_least

# Standard errors that a difference must have to count.
_NOISE: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FormResult:
    """One form on n public questions.

    right: (n,) bool, as the product judges an answer in this form. readable: (n,) bool, whether an
    answer can be read out of what the model writes from the prompt alone. chance: what guessing
    among the options would score, in [0, 1]; an open question counts 0.
    """

    form: FormName
    right: BoolArray
    readable: BoolArray
    chance: float

    @property
    def accuracy(self) -> float:
        """Share of right answers, in [0, 1]."""
        return float(self.right.mean())

    @property
    def standard_error(self) -> float:
        """Of the accuracy, over the choice of questions."""
        return float(np.sqrt(self.accuracy * (1.0 - self.accuracy) / len(self.right)))

    @property
    def readable_share(self) -> float:
        """Share of written paths with an answer that can be read, in [0, 1]."""
        return float(self.readable.mean())

    @property
    def above_chance(self) -> bool:
        """Whether the model can do this form: right more often than by guessing, beyond noise."""
        # The error under guessing: an accuracy of 0 or 1 has none of its own.
        error = float(np.sqrt(self.chance * (1.0 - self.chance) / len(self.right)))
        return self.accuracy > self.chance + _NOISE * max(error, self.standard_error)

    def figures(self) -> dict[str, float]:
        """For programs: shares in percent, to a tenth; `above_chance` as it is."""
        return {
            "right_percent": round(100 * self.accuracy, 1),
            "standard_error": round(100 * self.standard_error, 1),
            "chance_percent": round(100 * self.chance, 1),
            "readable_percent": round(100 * self.readable_share, 1),
            "above_chance": self.above_chance,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FormMeasurement:
    """All forms on the same questions, in the order cloze, listed, reasoned; and which to take.

    worse: forms that lose against the best one by more than noise.
    """

    results: tuple[FormResult, ...]
    recommended: FormName
    worse: tuple[FormName, ...]


def measure_forms(
    lm: TextModel,
    samples: Sequence[PoolSample],
    *,
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> FormMeasurement:
    """Ask a model public questions in every form.

    Open answers are judged by the verifier of `lm.form`. On a CPU a path takes most of the time:
    a hundred questions give an accuracy to about five points.

    Args: max_new_tokens: of a path; a model that reasons needs room for it. progress: told how many
        answers of how many there are.
    Raises: ParameterError: no questions, or sizes below 1.
    """
    if not samples:
        raise ParameterError("measuring answer forms needs at least one public question")
    at_least(1, batch_size=batch_size)
    whole, done = len(FORMS) * len(samples), 0
    results: list[FormResult] = []
    for name in FORMS:
        parts: list[FormResult] = []
        for first in range(0, len(samples), batch_size):
            part = samples[first : first + batch_size]
            parts.append(
                _measured(lm, name, part, batch_size=batch_size, max_new_tokens=max_new_tokens)
            )
            done += len(part)
            progress(done, whole)
        results.append(_together(parts))
    return FormMeasurement(
        results=tuple(results),
        recommended=recommended_form(results),
        worse=tuple(one.form for one in results if _worse(one, _best(results))),
    )


def recommended_form(results: Sequence[FormResult]) -> FormName:
    """The first form in the order given that is not worse than the best one beyond noise.

    Among those that the model can do, where there are any. Differences are paired, question by
    question. The first of forms that a model does equally well is the cheapest: it reads and
    writes the fewest tokens.
    """
    able, best = _able(results), _best(results)
    return next(one.form for one in able if not _worse(one, best))


def _able(results: Sequence[FormResult]) -> Sequence[FormResult]:
    """What the model can do; all where it can do none."""
    return [one for one in results if one.above_chance] or results


def _best(results: Sequence[FormResult]) -> FormResult:
    """Of what it can do: guessing is right more often in one form than in another."""
    return max(_able(results), key=lambda one: one.accuracy)


def _worse(one: FormResult, best: FormResult) -> bool:
    difference = best.right.astype(np.float64) - one.right
    error = float(difference.std()) / np.sqrt(len(difference))
    return bool(difference.mean() > _NOISE * error)


def _together(parts: Sequence[FormResult]) -> FormResult:
    """One form on the questions of all parts."""
    sizes = [len(one.right) for one in parts]
    return FormResult(
        form=parts[0].form,
        right=np.concatenate([one.right for one in parts]),
        readable=np.concatenate([one.readable for one in parts]),
        chance=float(np.average([one.chance for one in parts], weights=sizes)),
    )


def _measured(
    lm: TextModel,
    name: FormName,
    samples: Sequence[PoolSample],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> FormResult:
    form = answer_form(name, lm.form.verifier)
    asked = lm.with_form(form)
    answers = answer_pool(asked, samples, batch_size=batch_size, max_new_tokens=max_new_tokens)
    paths = list(answers.paths)
    # Where the option is chosen by its score, nothing was written yet.
    chosen = [at for at, sample in enumerate(samples) if not form.writes_first(sample.choices)]
    written = greedy_rationales(
        asked,
        [form.prompt(samples[at].question, samples[at].choices) for at in chosen],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    for at, path in zip(chosen, written, strict=True):
        paths[at] = path
    readable = [
        form.answer(path, sample.choices) is not None
        for path, sample in zip(paths, samples, strict=True)
    ]
    return FormResult(
        form=name,
        right=answers.right,
        readable=np.array(readable, dtype=np.bool_),
        chance=float(np.mean([1 / len(one.choices) if one.choices else 0.0 for one in samples])),
    )
