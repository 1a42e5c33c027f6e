"""Rationales that a model writes, kept where they end in the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lada_secure.data.prompts import answer_of, option_text, prompt_of, rationale_of
from lada_secure.data.records import PoolSample, Record
from lada_secure.errors import ParameterError
from lada_secure.models.evaluation import choose, generate_texts, greedy_rationales
from lada_secure.models.loading import TextModel
from lada_secure.privacy.release.private_records import for_each_unit
from lada_secure.privacy.release.units import Unit

# Of attempts after the first one, which is greedy.
_TEMPERATURE: Final = 0.7


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
    attempts: int,
    batch_size: int,
) -> GeneratedRationales:
    """Have the model write a path for each sample and keep those that reach the gold answer.

    Open questions: the first attempt is greedy; samples that it missed are drawn again at a
    temperature. Multiple choice: the model chooses the option that it finds most probable and,
    where that is the gold one, writes its reason behind it; choosing again would change nothing,
    so a wrong choice is dropped at once. A path whose reason is wrong but whose answer is right
    passes: only the answer can be checked.

    Args: max_new_tokens: >= 1; a path cut off there is kept if its answer can be read.
        attempts: >= 1.
    Raises: ParameterError: attempts below 1, or two samples with one id.
    """
    if attempts < 1:
        raise ParameterError(f"attempts: expected 1 or more, got {attempts}")
    if len({sample.sample_id for sample in samples}) != len(samples):
        raise ParameterError("a sample_id appears twice among the samples to solve")
    found: dict[str, str] = {}
    wrong = 0
    for attempt in range(attempts):
        left = [
            sample
            for sample in samples
            if sample.sample_id not in found and (attempt == 0 or not sample.choices)
        ]
        texts = _written(
            lm, left, batch_size=batch_size, max_new_tokens=max_new_tokens, attempt=attempt
        )
        for sample, text in zip(left, texts, strict=True):
            if answer_of(text, sample.choices) == sample.answer:
                found[sample.sample_id] = text
            else:
                wrong += 1
    ids = [sample.sample_id for sample in samples]
    return GeneratedRationales(
        paths=tuple(
            GeneratedRationale(sample_id=one, path=found[one]) for one in ids if one in found
        ),
        dropped=tuple(one for one in ids if one not in found),
        wrong=wrong,
    )


def _written(
    lm: TextModel,
    samples: Sequence[PoolSample],
    *,
    batch_size: int,
    max_new_tokens: int,
    attempt: int,
) -> list[str]:
    """One text per sample: the chosen option where there are options, and the reason."""
    texts = [""] * len(samples)
    closed = [at for at, sample in enumerate(samples) if sample.choices]
    picks = choose(lm, [samples[at] for at in closed], batch_size=batch_size)
    for at, pick in zip(closed, picks, strict=True):
        texts[at] = option_text(samples[at].choices[pick])
    # A wrong choice is dropped by its answer; a reason for it would be wasted time.
    going_on = [
        at
        for at, sample in enumerate(samples)
        if not sample.choices or texts[at] == option_text(sample.answer)
    ]
    reasons = generate_texts(
        lm,
        [prompt_of(samples[at].question, samples[at].choices) for at in going_on],
        begun=[texts[at] for at in going_on],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=_TEMPERATURE if attempt else 0.0,
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
            prompt_of(record.question, record.choices)
            for unit in part
            for record in unit.records
            if record.rationale is None
        ]
        written = greedy_rationales(lm, prompts, batch_size=batch, max_new_tokens=max_new_tokens)
        paths = iter(written)
        return [
            tuple(
                None if record.rationale is not None else _reasons(next(paths), record)
                for record in unit.records
            )
            for unit in part
        ]

    return for_each_unit(
        units,
        lambda part: write(part, batch_size),
        alone=lambda unit: write([unit], 1)[0],
        otherwise=(),
        what="own reasons",
    )


def _reasons(path: str, record: Record) -> str | None:
    stated = rationale_of(record.answer, record.choices, None)
    right = answer_of(path, record.choices) == record.answer
    return path if right and path.strip() != stated.strip() else None
