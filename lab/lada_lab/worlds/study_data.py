"""What a simulated study starts from, whatever world it is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lada_lab.worlds.sites import Question, numbered, records_of
from lada_secure.data.records import PoolSample, Record
from lada_secure.errors import ParameterError


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSite:
    """One site's private data. `held_out` repeats no template of `train` or of the pool."""

    name: str
    train: tuple[Record, ...]
    held_out: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchData:
    """A whole study's data.

    mark: how a question starts that means another thing to the public than inside a house, if any.
    harmful: pool indices of harmful samples, for reports only.
    """

    sites: tuple[BenchSite, ...]
    pool: tuple[PoolSample, ...]
    mark: str | None
    harmful: frozenset[int]


def bench_site(
    name: str, *, units: Sequence[str], train: Iterable[Question], held_out: Iterable[Question]
) -> BenchSite:
    """A site's questions as records; a held-out one is a privacy unit of its own.

    The train questions are read first, so both may draw from one generator.
    """
    train_records = records_of(train, units, prefix=f"{name}-train")
    asked = tuple(held_out)
    return BenchSite(
        name=name,
        train=train_records,
        held_out=records_of(asked, numbered("held-out", len(asked)), prefix=f"{name}-held-out"),
    )


def check_pool(pool: Sequence[PoolSample]) -> None:
    """Check that samples can be told apart and rationales be checked.

    Raises: ParameterError: empty, an id that comes twice, or a sample without a gold answer.
    """
    if not pool:
        raise ParameterError("pool: expected at least one sample, got none")
    name, count = Counter(sample.sample_id for sample in pool).most_common(1)[0]
    if count > 1:
        raise ParameterError(
            f"pool: sample_id {name!r} comes {count} times; give every sample an id of its own"
        )
    for sample in pool:
        if not sample.answer.strip():
            raise ParameterError(
                f"pool: sample {sample.sample_id!r} has no gold answer, so that no path of the LLM "
                "could be checked; add the answer or take the sample out"
            )
