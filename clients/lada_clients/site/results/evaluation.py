"""The form of an evaluation, what it says to people, and where it is kept: at the site alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from lada_clients.reports.ledger_history import DocumentPart
from lada_clients.site.results.intervals import Interval
from lada_secure.errors import ParameterError
from lada_secure.storage.whole_files import read_if_there, write_atomically

SCHEMA_VERSION: Final = 1
BEFORE: Final = "before"
AFTER: Final = "after"
PRIVATE: Final = (
    "These figures are of private records and no privacy budget covers them: they stay at this "
    "site. Choose no settings by them, and show them to nobody who would."
)
_SHOWN: Final = 20


class Bin(DocumentPart):
    """Answers of which the model was about as sure. confidence: its mean over them."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


class TopicFigure(DocumentPart):
    """The accuracy on the held-out records of one topic."""

    topic: int
    accuracy: Interval


class Figure(DocumentPart):
    """A share, by kind of task. label: which one, of a figure that each label has."""

    name: str
    label: str | None = None
    value: Interval

    def text(self) -> str:
        """Name and value."""
        of = "" if self.label is None else f" of {self.label}"
        return f"{self.name}{of} {self.value.text()}"


class KindFigures(DocumentPart):
    """What one model does on records of one kind. labels: of a classification. The first figure is
    the one that models are compared by."""

    kind: str
    labels: tuple[str, ...]
    records: int
    figures: tuple[Figure, ...]


class KindDifference(DocumentPart):
    """The difference of two models in the first figure of a kind, by its name."""

    kind: str
    labels: tuple[str, ...]
    name: str
    difference: Interval


class ModelFigures(DocumentPart):
    """What one model does.

    calibration_error: mean distance of confidence and accuracy over bins (Guo et al. 2017, equation
    3). general: accuracy on public questions of general knowledge; null where none were asked.
    kinds: by what the records themselves say of their kind; empty where none says anything.
    """

    name: str
    adapters_sha256: str | None
    accuracy: Interval
    calibration_error: float
    calibration: tuple[Bin, ...]
    topics: tuple[TopicFigure, ...]
    general: Interval | None
    kinds: tuple[KindFigures, ...] = ()


class Comparison(DocumentPart):
    """A model against another one, record by record.

    difference: of accuracies, paired. regressions: ids of records that `against` answers rightly
    and `model` does not; gains: the other way round.
    """

    model: str
    against: str
    difference: Interval
    general_difference: Interval | None
    regressions: tuple[str, ...]
    gains: tuple[str, ...]
    kinds: tuple[KindDifference, ...] = ()


class Topic(DocumentPart):
    """A topic of the study's pool. example: the public question that is nearest to its centre."""

    topic: int
    example: str


class Evaluation(DocumentPart):
    """`evaluation-round-N.json`, and what `lada site evaluate --json` prints.

    evaluated_before: how often this site has evaluated a model on the same held-out file.
    trained_units: people of it whose records are in the training file as well; null where that is
    not there any more.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    note: str = PRIVATE
    time: str
    study_id: str
    plan_sha256: str
    round: int
    held_out: str
    records: int
    units: int
    evaluated_before: int
    trained_units: int | None = None
    seed: int
    resamples: int
    topics: tuple[Topic, ...]
    models: tuple[ModelFigures, ...]
    comparisons: tuple[Comparison, ...]

    def warnings(self) -> tuple[str, ...]:
        """What whoever reads the figures must know first."""
        if not self.evaluated_before:
            return ()
        times = "once" if self.evaluated_before == 1 else f"{self.evaluated_before} times"
        return (
            f"{self.held_out} was evaluated {times} before. What is chosen among several looks at "
            "the same records is better on them than on others, and says something about them: "
            "keep fresh records for the figure that you will rely on.",
        )

    def sentences(self) -> tuple[str, ...]:
        """The figures without names of records, one a line."""
        return tuple(self._sentences({one.name for one in self.models}))

    def sentences_of_the_study(self) -> tuple[str, ...]:
        """The same of before and after alone: what else was set beside them is the site's own."""
        return tuple(self._sentences({BEFORE, AFTER}))

    def _sentences(self, names: Set[str]) -> Iterator[str]:
        yield (
            f"{self.records} held-out records of {self.units} units, 95% intervals by unit from "
            f"{self.resamples} draws."
        )
        if self.trained_units is None:
            yield "Whether the model was trained on these people was not checked: no training file."
        elif self.trained_units:
            yield (
                f"{self.trained_units} of these units have records in the training file as well; "
                "what is measured on them says little of anybody else."
            )
        for one in (model for model in self.models if model.name in names):
            general = f", general questions {one.general.text()}" if one.general else ""
            yield (
                f"{one.name}: accuracy {one.accuracy.text()}, calibration error "
                f"{one.calibration_error:.3f}{general}"
            )
            for kind in one.kinds:
                yield (
                    f"  {_named(kind.kind, kind.labels)}, {kind.records} records: "
                    f"{kind.figures[0].text()}"
                )
        for two in (two for two in self.comparisons if {two.model, two.against} <= names):
            general = (
                f"; general questions {two.general_difference.points()}"
                if two.general_difference
                else ""
            )
            yield (
                f"{two.model} against {two.against}: {two.difference.points()}, "
                f"{len(two.gains)} records won and {len(two.regressions)} lost{general}"
            )
            for moved in two.kinds:
                yield (
                    f"  {_named(moved.kind, moved.labels)}: {moved.name} "
                    f"{moved.difference.points()}"
                )

    def details(self) -> Iterator[str]:
        """Topics, all figures by kind, and which records were lost; for the site's own screen."""
        names = {one.topic: one.example for one in self.topics}
        for figures in zip(*(one.topics for one in self.models), strict=True):
            topic = figures[0].topic
            shares = ", ".join(
                f"{model.name} {one.accuracy.text()}"
                for model, one in zip(self.models, figures, strict=True)
            )
            like = f', like "{names[topic]}"' if topic in names else ""
            yield f"topic {topic}{like}: {figures[0].accuracy.n} records, {shares}"
        for model in self.models:
            for kind in model.kinds:
                for figure in kind.figures[1:]:
                    yield f"{model.name}, {_named(kind.kind, kind.labels)}: {figure.text()}"
        for two in self.comparisons:
            if two.regressions:
                more = len(two.regressions) - _SHOWN
                rest = f" and {more} more (--json has all)" if more > 0 else ""
                yield (
                    f"lost by {two.model} against {two.against}: "
                    f"{', '.join(two.regressions[:_SHOWN])}{rest}"
                )


def _named(kind: str, labels: Sequence[str]) -> str:
    """A kind for people; a classification by how many labels it has."""
    return f"{kind} of {len(labels)} labels" if labels else kind


def evaluation_file(folder: Path, round_id: int) -> Path:
    """Where the newest evaluation of a round is kept. folder: the study's."""
    return folder / f"evaluation-round-{round_id}.json"


def keep_evaluation(folder: Path, found: Evaluation) -> None:
    """Keep it, for its owner's eyes. Raises: TransportError: cannot be written."""
    content = (found.model_dump_json(indent=1) + "\n").encode("utf-8")
    write_atomically(evaluation_file(folder, found.round), content, mode=0o600)


def read_evaluation(folder: Path, round_id: int) -> Evaluation | None:
    """The newest evaluation of a round; None where there is none.

    Raises: ParameterError: the file is damaged.
    """
    path = evaluation_file(folder, round_id)
    raw = read_if_there(path)
    if raw is None:
        return None
    try:
        return Evaluation.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ParameterError(
            f"{path}: {where}: {first['msg']}; remove the file and evaluate again"
        ) from error
