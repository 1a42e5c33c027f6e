"""Samples of a pool that say the same: duplicates, contradictions of gold answers, near ones.

A pool that asks one question twice counts it twice; one that answers it in two ways teaches half of
its readers something wrong. Samples are public, so they are named by their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lada_secure.data.importing.near_duplicates import MANY_ALIKE, MAX_INDEXED, NearTexts
from lada_secure.data.importing.overlap import text_of
from lada_secure.data.records import PoolSample
from lada_secure.data.verification import folded
from lada_secure.screen_text import printable

_CHUNK: Final = 512
# In place of what `AlikeSamples.to_json` tells, of a pool that was not looked at.
NOT_LOOKED_AT: Final = dict.fromkeys(
    ("duplicates", "conflicts", "near", "compared_for_near", "not_compared_with_all")
)


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
    without regard to case, spacing and Unicode variants. conflicts: samples with one question and
    the same choices whose gold answers are not all the same; ids with these answers. near: pairs
    above a Jaccard index of 0.8, of samples with one question and the same choices the first alone;
    None where nobody looked for them. compared: samples that were looked at for near ones. cut: of
    them, those with more texts like them than are compared, and none near among these.
    """

    duplicates: tuple[tuple[str, ...], ...]
    conflicts: tuple[Mapping[str, str], ...]
    near: tuple[Near, ...] | None
    compared: int
    cut: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "duplicates": [list(ids) for ids in self.duplicates],
            "conflicts": [dict(answers) for answers in self.conflicts],
            "near": None
            if self.near is None
            else [[one.sample_id, one.earlier_id, one.same_answer] for one in self.near],
            "compared_for_near": self.compared,
            "not_compared_with_all": self.cut,
        }

    def pairs(self) -> Iterator[tuple[str, str, str]]:
        """Kind and two ids of each pair that somebody should look at.

        Of a set of duplicates its first sample with every other one; of a conflict every sample
        with the first that contradicts it.
        """
        for ids in self.duplicates:
            yield from (("duplicate", ids[0], other) for other in ids[1:])
        for answers in self.conflicts:
            places = {name: at for at, name in enumerate(answers)}
            plain = {name: folded(answer) for name, answer in answers.items()}
            first = next(iter(plain))
            other = next(name for name in plain if plain[name] != plain[first])
            for name in plain:
                against = other if plain[name] == plain[first] else first
                # This pair stands there already, from the first one's side.
                if name != other:
                    early, late = sorted((name, against), key=places.__getitem__)
                    yield "conflict", early, late
        yield from (("near", one.earlier_id, one.sample_id) for one in self.near or ())


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
        by_answer: dict[str, list[str]] = {}
        for one in group:
            by_answer.setdefault(folded(one.answer), []).append(one.sample_id)
        duplicates += [tuple(ids) for ids in by_answer.values() if len(ids) > 1]
        if len(by_answer) > 1:
            conflicts.append({one.sample_id: one.answer for one in group})
    first = [group[0] for group in groups.values()][:MAX_INDEXED] if near else []
    found, cut = _near(first, told)
    return AlikeSamples(
        duplicates=tuple(duplicates),
        conflicts=tuple(conflicts),
        near=found if near else None,
        compared=len(first),
        cut=cut,
    )


def _near(
    samples: Sequence[PoolSample], told: Callable[[int], None]
) -> tuple[tuple[Near, ...], int]:
    texts = [text_of(one.question, one.choices) for one in samples]
    # All are read twice: each time counts as half.
    index, found = NearTexts(texts, told=lambda done: told(done // 2)), []
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
        told((len(texts) + start + len(places)) // 2)
    return tuple(found), index.cut


def alike_sentences(told: Mapping[str, Any], *, shown: int = 5) -> Iterator[str]:
    """What a pool says more than once, the first ones by id. told: `AlikeSamples.to_json`."""
    if told["duplicates"] is None:
        yield "duplicates, contradictions and near duplicates were not looked for"
        return
    yield from _list("set(s) of duplicates", map(", ".join, told["duplicates"]), shown)
    conflicts = (
        ", ".join(f"{name}: {answer}" for name, answer in answers.items())
        for answers in told["conflicts"]
    )
    yield from _list("contradiction(s) of gold answers", conflicts, shown)
    if told["near"] is None:
        yield "near duplicates were not looked for"
        return
    near = (
        f"{own} of {earlier}" + ("" if same else ", with another answer")
        for own, earlier, same in told["near"]
    )
    yield from _list("near duplicate(s)", near, shown)
    if told["not_compared_with_all"]:
        yield f"{told['not_compared_with_all']:,} sample(s) {MANY_ALIKE}"


def _list(what: str, lines: Iterable[str], shown: int) -> Iterator[str]:
    every = list(lines)
    yield f"{len(every):,} {what}"
    yield from (f"  {printable(line)}" for line in every[:shown])
    if len(every) > shown:
        yield f"  and {len(every) - shown:,} more (--json has all)"
