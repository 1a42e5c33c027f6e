"""What every world is made of: the sites' records, the pool, public material."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from lada_secure.data.records import PoolSample, Record
from lada_secure.errors import ParameterError

MIN_SITES = 3
MAX_SITES = 12

# How many records a unit has, 1 to 4, and how often: most people come once.
_RECORDS_PER_UNIT = (1, 2, 3, 4)
_UNIT_SHARES = (0.6, 0.2, 0.12, 0.08)


# What can be sorted: texts, and tuples of texts.
Item = TypeVar("Item", str, tuple[Any, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteData:
    """One site's private records: for training, and held out to measure it.

    No code, synset or template of `held_out` occurs in `train`, in the pool or in the material that
    the LLM is tuned on.
    """

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationData:
    """A whole study's data. `teacher` is public material with reasoning, to tune the LLM on."""

    sites: Mapping[str, SiteData]
    pool: tuple[PoolSample, ...]
    teacher: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a record or a pool sample asks; `rationale` is None where only the answer is told."""

    question: str
    answer: str
    rationale: str | None
    choices: tuple[str, ...] = ()


def records_of(
    questions: Iterable[Question], units: Iterable[str], *, prefix: str
) -> tuple[Record, ...]:
    """Records named "prefix-0000" and on, one per question and privacy unit."""
    return tuple(
        Record(
            record_id=f"{prefix}-{number:04d}",
            unit=unit,
            question=asked.question,
            choices=asked.choices,
            answer=asked.answer,
            rationale=asked.rationale,
        )
        for number, (asked, unit) in enumerate(zip(questions, units, strict=True))
    )


def pool_of(questions: Iterable[Question]) -> tuple[PoolSample, ...]:
    """Pool samples named "pool-0000" and on."""
    return tuple(
        PoolSample(
            sample_id=f"pool-{number:04d}",
            question=asked.question,
            choices=asked.choices,
            answer=asked.answer,
        )
        for number, asked in enumerate(questions)
    )


def numbered(prefix: str, count: int) -> list[str]:
    """Names "prefix-0000" and on, for units of one record each."""
    return [f"{prefix}-{number:04d}" for number in range(count)]


def check_sites(sites: int) -> None:
    """Refuse a number of sites that no preset supports.

    Raises: ParameterError: fewer than 3 (a sum over two sites shows each the other's) or over 12.
    """
    if not MIN_SITES <= sites <= MAX_SITES:
        raise ParameterError(
            f"sites: expected {MIN_SITES} to {MAX_SITES}, got {sites}; a sum over fewer than "
            f"{MIN_SITES} sites would show a site the others' share"
        )


def site_letter(index: int) -> str:
    """The letter that names the `index`-th site of its kind, from "a"."""
    return string.ascii_lowercase[index]


def unit_names(rng: np.random.Generator, records: int, *, prefix: str) -> list[str]:
    """Synthetic privacy-unit ids for that many records; neighbours may share a unit (1 to 4).

    Returns: one unit id per record, for example "patient-0007".
    """
    names: list[str] = []
    unit = 0
    while len(names) < records:
        unit += 1
        size = int(rng.choice(_RECORDS_PER_UNIT, p=_UNIT_SHARES))
        names.extend([f"{prefix}-{unit:04d}"] * size)
    return names[:records]


def shuffled(rng: np.random.Generator, items: Sequence[Item]) -> list[Item]:
    """The items in an order that depends on the generator alone.

    They are sorted first: sets change their order from run to run (hash randomisation).
    """
    ordered = sorted(items)
    return [ordered[index] for index in rng.permutation(len(ordered))]
