"""Figures by kind of task: each kind is judged as its records say, with intervals by unit.

The accuracy of a whole evaluation stays the study's own: right is what the plan's answer form and
verifier call right. Here a record's own kind decides (`lada_secure.data.tasks`).

| kind | figures; the first one is compared between models |
|---|---|
| `choice` | accuracy |
| `text` | exact match of normalised texts |
| `number` | within tolerance; right number in another unit; no number at all |
| `yes_no_unknown` | accuracy; share answered yes or no, and of those right; unknown ones found |
| `classification` | macro-F1; accuracy; recall of each label |
| `not said` | accuracy by the study's rule |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lada_clients.site.results.answers import Answer
from lada_clients.site.results.evaluation import Figure, KindDifference, KindFigures
from lada_clients.site.results.intervals import Interval, mean_interval
from lada_clients.site.results.macro_f1 import Labelled
from lada_secure.arrays import FloatArray
from lada_secure.data.records import Record
from lada_secure.data.tasks import Classification, Number, Text, YesNoUnknown
from lada_secure.data.verification import Verifier

NOT_SAID: Final = "not said"
_TEXT: Final = Verifier(rule="normalised")


@dataclass(frozen=True, slots=True, kw_only=True)
class KindGroup:
    """Held-out records of one kind. labels: the fixed set of a classification, empty otherwise.
    places: of the records among all held-out ones, >= 1. units: (places,)."""

    kind: str
    labels: tuple[str, ...]
    places: tuple[int, ...]
    records: tuple[Record, ...]
    units: tuple[str, ...]


def kind_groups(records: Sequence[Record], units: Sequence[str]) -> tuple[KindGroup, ...]:
    """Records by kind, and classifications by their labels; none where no record says a kind."""
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for at, record in enumerate(records):
        kind = NOT_SAID if record.task is None else record.task.kind
        labels = tuple(sorted(record.choices)) if isinstance(record.task, Classification) else ()
        groups.setdefault((kind, labels), []).append(at)
    if all(kind == NOT_SAID for kind, _ in groups):
        return ()
    return tuple(
        KindGroup(
            kind=kind,
            labels=labels,
            places=tuple(places),
            records=tuple(records[at] for at in places),
            units=tuple(units[at] for at in places),
        )
        for (kind, labels), places in sorted(groups.items())
    )


class KindScoring:
    """Scores answers to the records of one group. seed, resamples: of the intervals' draws."""

    def __init__(self, group: KindGroup, *, seed: int, resamples: int) -> None:
        self._group, self._seed, self._resamples = group, seed, resamples

    def figures(self, answers: Sequence[Answer]) -> KindFigures:
        """What a model does. answers: to all held-out records."""
        own = self._own(answers)
        return KindFigures(
            kind=self._group.kind,
            labels=self._group.labels,
            records=len(own),
            figures=tuple(self._figures(own)),
        )

    def difference(self, answers: Sequence[Answer], other: Sequence[Answer]) -> KindDifference:
        """The first figure of `answers` less that of `other`, paired record by record."""
        own, others = self._own(answers), self._own(other)
        if self._group.kind == Classification.kind:
            name, moved = "macro-F1", self._macro_f1_difference(own, others)
        else:
            name, first = self._first(own)
            _, second = self._first(others)
            moved = self._mean(first - second, (-1.0, 1.0))
        return KindDifference(
            kind=self._group.kind, labels=self._group.labels, name=name, difference=moved
        )

    def _own(self, answers: Sequence[Answer]) -> list[Answer]:
        return [answers[at] for at in self._group.places]

    def _first(self, own: Sequence[Answer]) -> tuple[str, FloatArray]:
        """The first figure's name and values, (places,), but of a classification."""
        kind = self._group.kind
        if kind == Text.kind:
            return "exact match", self._each(
                own, lambda record, said: said is not None and _TEXT.right(said, record.answer)
            )
        if kind == Number.kind:
            return "within tolerance", self._verdict(own, "right")
        if kind == NOT_SAID:
            return "accuracy", np.array([float(one.right) for one in own])
        return "accuracy", self._each(own, lambda record, said: said == record.answer)

    def _figures(self, own: Sequence[Answer]) -> Iterator[Figure]:
        kind = self._group.kind
        if kind == Classification.kind:
            yield from self._of_labels(own)
            return
        name, right = self._first(own)
        yield Figure(name=name, value=self._mean(right))
        if kind == Number.kind:
            yield Figure(
                name="right number, other unit", value=self._mean(self._verdict(own, "other unit"))
            )
            yield Figure(name="no number", value=self._mean(self._verdict(own, "no number")))
        elif kind == YesNoUnknown.kind:
            yield from self._of_abstention(own, right)

    def _of_abstention(self, own: Sequence[Answer], right: FloatArray) -> Iterator[Figure]:
        """Who says unknown abstains; an answer that cannot be read is none of the three."""
        abstains = self._each(own, lambda record, said: said == _unknown(record))
        wanted = self._each(own, lambda record, said: record.answer == _unknown(record))
        said = self._each(own, lambda record, said: said is not None and said != _unknown(record))
        yield Figure(name="answered yes or no", value=self._mean(said))
        for name, values, among in (
            ("right where yes or no was answered", right, said),
            ("unknown ones found", abstains, wanted),
            ("unknown where unknown was answered", wanted, abstains),
        ):
            if among.any():
                yield Figure(name=name, value=self._mean_among(values, among))

    def _of_labels(self, own: Sequence[Answer]) -> Iterator[Figure]:
        group = self._group
        labelled = Labelled([one.answer for one in group.records], group.units)
        given = [one.answer for one in own]
        macro = labelled.interval(given, seed=self._seed, resamples=self._resamples)
        right = self._each(own, lambda record, said: said == record.answer)
        yield Figure(name="macro-F1", value=macro)
        yield Figure(name="accuracy", value=self._mean(right))
        for label in group.labels:
            among = np.array([float(one.answer == label) for one in group.records])
            if among.any():
                yield Figure(name="recall", label=label, value=self._mean_among(right, among))

    def _macro_f1_difference(self, own: Sequence[Answer], others: Sequence[Answer]) -> Interval:
        group = self._group
        return Labelled([one.answer for one in group.records], group.units).difference(
            [one.answer for one in own],
            [one.answer for one in others],
            seed=self._seed,
            resamples=self._resamples,
        )

    def _verdict(self, own: Sequence[Answer], wanted: str) -> FloatArray:
        def judged(record: Record, said: str | None) -> bool:
            if not isinstance(record.task, Number) or said is None:
                return wanted == "no number"
            return record.task.judge(said, record.answer) == wanted

        return self._each(own, judged)

    def _each(
        self, own: Sequence[Answer], holds: Callable[[Record, str | None], bool]
    ) -> FloatArray:
        pairs = zip(self._group.records, own, strict=True)
        return np.array([float(holds(record, one.answer)) for record, one in pairs])

    def _mean(self, values: FloatArray, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
        return mean_interval(
            values, self._group.units, bounds=bounds, seed=self._seed, resamples=self._resamples
        )

    def _mean_among(self, values: FloatArray, among: FloatArray) -> Interval:
        """The mean over the records where `among` is 1; others say nothing of it."""
        places = np.flatnonzero(among)
        units = [self._group.units[int(at)] for at in places]
        return mean_interval(values[places], units, seed=self._seed, resamples=self._resamples)


def _unknown(record: Record) -> str | None:
    return record.task.unknown if isinstance(record.task, YesNoUnknown) else None
