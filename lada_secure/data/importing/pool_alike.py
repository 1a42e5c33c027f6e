"""Samples of a pool that say the same: duplicates, contradictions of gold answers, near ones.

A pool that asks one question twice counts it twice; one that answers it in two ways teaches half of
its readers something wrong. Samples are public, so they are named by their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lada_secure.data.importing.near_duplicates import MAX_INDEXED, NearTexts
from lada_secure.data.importing.overlap import text_of
from lada_secure.data.records import PoolSample
from lada_secure.data.verification import folded
from lada_secure.screen_text import printable

_CHUNK: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """A sample that says nearly what an earlier one says. same_answer: of their gold answers."""

    sample_id: str
    earlier_id: str
    same_answer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AlikeSamples:
    """What a pool says more than once.

    duplicates: ids of samples with one question, the same choices in any order, and one answer;
    without regard to case, spacing and Unicode variants. conflicts: the same, but that their gold
    answers differ; ids with these answers. near: pairs above a Jaccard index of 0.8, one of each
    set of duplicates alone. compared: samples that were looked at for near ones.
    """

    duplicates: tuple[tuple[str, ...], ...]
    conflicts: tuple[Mapping[str, str], ...]
    near: tuple[Near, ...]
    compared: int

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "duplicates": [list(ids) for ids in self.duplicates],
            "conflicts": [dict(answers) for answers in self.conflicts],
            "near": [[one.sample_id, one.earlier_id, one.same_answer] for one in self.near],
            "compared_for_near": self.compared,
        }


def alike_samples(
    pool: Sequence[PoolSample], *, near: bool = True, told: Callable[[int], None] = lambda _: None
) -> AlikeSamples:
    """Look through a pool.

    Args: near: whether near ones are looked for. told: gets how many samples are done for that.
    """
    groups: dict[tuple[str, frozenset[str]], list[PoolSample]] = {}
    for sample in pool:
        key = (folded(sample.question), frozenset(map(folded, sample.choices)))
        groups.setdefault(key, []).append(sample)
    duplicates, conflicts = [], []
    for group in groups.values():
        if len({folded(one.answer) for one in group}) > 1:
            conflicts.append({one.sample_id: one.answer for one in group})
        elif len(group) > 1:
            duplicates.append(tuple(one.sample_id for one in group))
    first = [group[0] for group in groups.values()][:MAX_INDEXED] if near else []
    return AlikeSamples(
        duplicates=tuple(duplicates),
        conflicts=tuple(conflicts),
        near=_near(first, told),
        compared=len(first),
    )


def _near(samples: Sequence[PoolSample], told: Callable[[int], None]) -> tuple[Near, ...]:
    texts = [text_of(one.question, one.choices) for one in samples]
    index, found = NearTexts(texts), []
    for start in range(0, len(texts), _CHUNK):
        places = index.earlier(start, texts[start : start + _CHUNK])
        for at, place in enumerate(places, start=start):
            if place is not None:
                own, other = samples[at], samples[place]
                found.append(
                    Near(
                        sample_id=own.sample_id,
                        earlier_id=other.sample_id,
                        same_answer=folded(own.answer) == folded(other.answer),
                    )
                )
        told(start + len(places))
    return tuple(found)


def alike_sentences(told: Mapping[str, Any], *, shown: int = 5) -> Iterator[str]:
    """What a pool says more than once, the first ones by id. told: `AlikeSamples.to_json`."""
    named = [
        ("set(s) of duplicates", [", ".join(ids) for ids in told["duplicates"]]),
        (
            "contradiction(s) of gold answers",
            [
                ", ".join(f"{name}: {answer}" for name, answer in answers.items())
                for answers in told["conflicts"]
            ],
        ),
        (
            "near duplicate(s)",
            [
                f"{own} of {earlier}" + ("" if same else ", with another answer")
                for own, earlier, same in told["near"]
            ],
        ),
    ]
    for what, lines in named:
        yield f"{len(lines):,} {what}"
        yield from (f"  {printable(line)}" for line in lines[:shown])
        if len(lines) > shown:
            yield f"  and {len(lines) - shown:,} more (--json has all)"
