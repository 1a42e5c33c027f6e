"""Figures of models from their answers: pure functions, the same at every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lada_clients.site.results.answers import Answer
from lada_clients.site.results.evaluation import Bin, Comparison, ModelFigures, TopicFigure
from lada_clients.site.results.intervals import Interval, mean_interval
from lada_clients.site.results.kinds import KindScoring, kind_groups
from lada_secure.arrays import FloatArray
from lada_secure.data.records import Record

_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How intervals are drawn; both are public."""

    seed: int
    resamples: int

    def interval(
        self, values: FloatArray, units: Sequence[str], bounds: tuple[float, float] = (0.0, 1.0)
    ) -> Interval:
        """See `mean_interval`."""
        return mean_interval(values, units, bounds=bounds, seed=self.seed, resamples=self.resamples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A model's answers. general: to public questions, empty where none were asked."""

    name: str
    adapters_sha256: str | None
    held_out: Sequence[Answer]
    general: Sequence[Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What is known of the held-out records without a model: the records, units and topics, (n,)
    each.

    topics: empty where the study's topics are not known here.
    """

    records: Sequence[Record]
    units: Sequence[str]
    topics: Sequence[int]

    def scorings(self, drawing: Drawing) -> list[KindScoring]:
        """One for each kind of task."""
        return [
            KindScoring(group, seed=drawing.seed, resamples=drawing.resamples)
            for group in kind_groups(self.records, self.units)
        ]


def figures_of(one: Answered, held_out: HeldOut, drawing: Drawing) -> ModelFigures:
    """What one model does."""
    right = _right(one.held_out)
    confidence = np.array([answer.confidence for answer in one.held_out], dtype=np.float64)
    calibration = calibration_bins(right, confidence)
    distance = sum(part.n * abs(part.confidence - part.accuracy) for part in calibration)
    topics = []
    for topic in sorted(set(held_out.topics)):
        places = [at for at, own in enumerate(held_out.topics) if own == topic]
        units = [held_out.units[at] for at in places]
        topics.append(TopicFigure(topic=topic, accuracy=drawing.interval(right[places], units)))
    return ModelFigures(
        name=one.name,
        adapters_sha256=one.adapters_sha256,
        accuracy=drawing.interval(right, held_out.units),
        calibration_error=distance / len(right),
        calibration=calibration,
        topics=tuple(topics),
        general=_alone(_right(one.general), drawing) if one.general else None,
        kinds=tuple(scoring.figures(one.held_out) for scoring in held_out.scorings(drawing)),
    )


def compare(one: Answered, other: Answered, held_out: HeldOut, drawing: Drawing) -> Comparison:
    """A model against another one, which has answered the same questions."""
    change = _right(one.held_out) - _right(other.held_out)
    general = None
    if one.general:
        general = _alone(_right(one.general) - _right(other.general), drawing, (-1.0, 1.0))
    ids = [record.record_id for record in held_out.records]
    return Comparison(
        model=one.name,
        against=other.name,
        difference=drawing.interval(change, held_out.units, (-1.0, 1.0)),
        general_difference=general,
        regressions=tuple(name for name, moved in zip(ids, change, strict=True) if moved < 0),
        gains=tuple(name for name, moved in zip(ids, change, strict=True) if moved > 0),
        kinds=tuple(
            scoring.difference(one.held_out, other.held_out)
            for scoring in held_out.scorings(drawing)
        ),
    )


def calibration_bins(right: FloatArray, confidence: FloatArray) -> tuple[Bin, ...]:
    """Answers by how sure the model was, in tenths; tenths without an answer are left out."""
    place = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    return tuple(
        Bin(
            low=at / _BINS,
            high=(at + 1) / _BINS,
            n=int((place == at).sum()),
            confidence=float(confidence[place == at].mean()),
            accuracy=float(right[place == at].mean()),
        )
        for at in range(_BINS)
        if (place == at).any()
    )


def _right(answers: Sequence[Answer]) -> FloatArray:
    return np.array([float(answer.right) for answer in answers], dtype=np.float64)


def _alone(
    values: FloatArray, drawing: Drawing, bounds: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """Public questions are of nobody: each is a unit of its own."""
    return drawing.interval(values, [str(at) for at in range(len(values))], bounds)
