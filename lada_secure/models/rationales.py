"""Rationales that a model writes, kept where they end in the right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

from lada_secure.data.forms import AnswerForm
from lada_secure.data.records import PoolSample, Record
from lada_secure.errors import ParameterError
from lada_secure.models.company import as_if_alone
from lada_secure.models.evaluation import (
    choose,
    generate_texts,
    greedy_rationales,
    rationale_log_probabilities,
)
from lada_secure.models.text_model import TextModel
from lada_secure.privacy.release.private_records import for_each_unit
from lada_secure.privacy.release.units import Unit

Keep: TypeAlias = Literal["first", "shortest", "most_probable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How many paths are written for a sample, and which right one is kept.

    attempts: at most so many, >= 1; the first is greedy, the others are drawn at `temperature` from
    the tokens of `top_p`. keep: `first` stops at the first right path; `shortest` (in the model's
    tokens) and `most_probable` (per token, to the model that wrote it) make all attempts and take
    one of the right paths, the earliest of equal ones.

    Raises: ParameterError: attempts below 1.
    """

    attempts: int
    temperature: float = 0.7
    top_p: float = 1.0
    keep: Keep = "first"

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ParameterError(f"attempts: expected 1 or more, got {self.attempts}")


GREEDY: Final = Sampling(attempts=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRationale:
    """A path that ended in the right answer."""

    sample_id: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRationales:
    """Paths for the samples that were solved, in the samples' order, and what was dropped.

    `dropped`: ids of the samples that no attempt solved. `wrong`: attempts that ended in another
    answer or in none that can be read.
    """

    paths: tuple[GeneratedRationale, ...]
    dropped: tuple[str, ...]
    wrong: int


def generate_rationales(
    lm: TextModel,
    samples: Sequence[PoolSample],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    batch_size: int,
) -> GeneratedRationales:
    """Have the model write paths for each sample and keep one that reaches the gold answer.

    Where the answer comes first in multiple choice, the model chooses the option that it finds most
    probable and, where that is the gold one, writes its reason behind it; choosing again would
    change nothing, so a wrong choice is dropped at once. A path whose reason is wrong but whose
    answer is right passes: only the answer can be checked.

    Args: max_new_tokens: >= 1; a path cut off there is kept if its answer can be read.
    Raises: ParameterError: two samples with one id.
    """
    if len({sample.sample_id for sample in samples}) != len(samples):
        raise ParameterError("a sample_id appears twice among the samples to solve")
    found: dict[str, list[str]] = {sample.sample_id: [] for sample in samples}
    left, wrong = list(samples), 0
    for attempt in range(sampling.attempts):
        if not left:
            break
        texts = _written(
            lm,
            left,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            attempt=attempt,
        )
        for sample, text in zip(left, texts, strict=True):
            if lm.form.right(text, sample.choices, sample.answer):
                found[sample.sample_id].append(text)
            else:
                wrong += 1
        left = [one for one in left if _goes_on(lm, one, found[one.sample_id], sampling)]
    solved = [sample for sample in samples if found[sample.sample_id]]
    kept = _kept(lm, solved, found, keep=sampling.keep, batch_size=batch_size)
    return GeneratedRationales(
        paths=tuple(
            GeneratedRationale(sample_id=sample.sample_id, path=path)
            for sample, path in zip(solved, kept, strict=True)
        ),
        dropped=tuple(one.sample_id for one in samples if not found[one.sample_id]),
        wrong=wrong,
    )


def _goes_on(lm: TextModel, sample: PoolSample, right: Sequence[str], sampling: Sampling) -> bool:
    """Whether another attempt at this sample may bring something."""
    if right:
        return sampling.keep != "first"
    return lm.form.writes_first(sample.choices)


def _kept(
    lm: TextModel,
    solved: Sequence[PoolSample],
    found: Mapping[str, Sequence[str]],
    *,
    keep: Keep,
    batch_size: int,
) -> list[str]:
    """One of the right paths of each sample."""
    if keep == "first":
        return [found[sample.sample_id][0] for sample in solved]
    paths = [(at, text) for at, one in enumerate(solved) for text in found[one.sample_id]]
    texts = [text for _, text in paths]
    if keep == "shortest":
        costs = np.array(lm.token_counts(texts), dtype=np.float64)
    else:
        prompts = [lm.form.prompt(solved[at].question, solved[at].choices) for at, _ in paths]
        costs = -rationale_log_probabilities(lm, prompts, texts, batch_size=batch_size).mean
    best: dict[int, int] = {}
    for place, (at, _) in enumerate(paths):
        if at not in best or costs[place] < costs[best[at]]:
            best[at] = place
    return [texts[best[at]] for at in range(len(solved))]


def _written(
    lm: TextModel,
    samples: Sequence[PoolSample],
    *,
    batch_size: int,
    max_new_tokens: int,
    sampling: Sampling,
    attempt: int,
) -> list[str]:
    """One text per sample: the chosen option where that comes first, and the reason."""
    form = lm.form
    texts = [""] * len(samples)
    chosen = [at for at, sample in enumerate(samples) if not form.writes_first(sample.choices)]
    picks = choose(lm, [samples[at] for at in chosen], batch_size=batch_size)
    going_on = [at for at, sample in enumerate(samples) if form.writes_first(sample.choices)]
    for at, pick in zip(chosen, picks, strict=True):
        choices = samples[at].choices
        texts[at] = form.begun(choices[pick], choices)
        # A wrong choice is dropped by its answer; a reason for it would be wasted time.
        if choices[pick] == samples[at].answer:
            going_on.append(at)
    going_on.sort()
    reasons = generate_texts(
        lm,
        [form.prompt(samples[at].question, samples[at].choices) for at in going_on],
        begun=[texts[at] for at in going_on],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=sampling.temperature if attempt else 0.0,
        top_p=sampling.top_p if attempt else 1.0,
        seed=attempt + 1,
    )
    for at, reason in zip(going_on, reasons, strict=True):
        texts[at] += reason
    return texts


def self_generated_rationales(
    lm: TextModel, units: Sequence[Unit], *, batch_size: int, max_new_tokens: int
) -> list[tuple[str | None, ...]]:
    """What the model as it is now writes for each record without reasons, if that answers it.

    A path that ends in the record's answer is more likely to be right than one that does not, and
    becomes something to learn (Zelikman et al. 2022, arXiv 2203.14465). A model that has learned
    most of a domain from pool paths explains most of the site's records, and so learns the rest
    from records that could teach it nothing before.

    Each path is a function of one record and the model. With a released model, training on them
    therefore bounds a unit's part as training on the record itself does. The paths are private. A
    unit for whose records the model cannot write, whatever they hold, gets no paths.

    Returns: per unit, one entry per record: None for a record that has reasons, for another answer
        than the record's, and for a bare answer.
    """

    def write(part: Sequence[Unit], batch: int) -> list[tuple[str | None, ...]]:
        prompts = [
            lm.form.prompt(record.question, record.choices)
            for unit in part
            for record in unit.records
            if record.rationale is None
        ]
        written = greedy_rationales(lm, prompts, batch_size=batch, max_new_tokens=max_new_tokens)
        paths = iter(written)
        return [
            tuple(
                None if record.rationale is not None else _reasons(lm.form, next(paths), record)
                for record in unit.records
            )
            for unit in part
        ]

    return for_each_unit(
        units,
        as_if_alone(lm, lambda part: write(part, batch_size)),
        alone=lambda unit: write([unit], 1)[0],
        otherwise=(),
        what="own reasons",
    )


def _reasons(form: AnswerForm, path: str, record: Record) -> str | None:
    right = form.right(path, record.choices, record.answer)
    return path if right and form.has_reasons(path, record.choices, record.answer) else None
