"""Runs as lines of a CSV: one arm in one world at one epsilon and one draw of noise."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lada_lab.arms.grid import Point
from lada_lab.arms.simulation import Outcome
from lada_secure.errors import ParameterError

_NAMED = ("condition", "epsilon", "seed", "draw")
_MEASURED = ("accuracy", "llm_before", "llm_accuracy")
_COUNTS = ("asked", "received", "received_harmful", "trained", "trained_harmful")
_COSTS = ("spent", "cpu_s", "alone_s")
_AFTER = ("site", *_MEASURED, *_COUNTS, *_COSTS, "transfers")
# What files of versions before there were draws lack.
_LATER = frozenset({"draw", *_COSTS, "transfers"})


class RunKey(NamedTuple):
    """What tells runs apart."""

    point: Point
    condition: str
    epsilon: float
    seed: int
    draw: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One arm in one world at one epsilon and one draw of noise, from 1."""

    point: Point
    draw: int
    outcome: Outcome

    @property
    def key(self) -> RunKey:
        """What tells it from all other runs of a file."""
        one = self.outcome
        return RunKey(self.point, one.condition, one.epsilon, one.seed, self.draw)


def csv_text(runs: Iterable[Run], factors: Sequence[str] = ()) -> str:
    """One line per run and site, with a column for every factor.

    `cpu_s` and `alone_s` are the run's, divided over its sites, so that a column adds up.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*_NAMED, *factors, *_AFTER))
    for run in runs:
        writer.writerows(_rows(run))
    return out.getvalue()


def _rows(run: Run) -> list[list[object]]:
    one, sites = run.outcome, len(run.outcome.by_site)
    named = [one.condition, repr(one.epsilon).removesuffix(".0"), one.seed, run.draw]
    transfers = json.dumps(list(one.transfers)) if one.transfers else ""
    rows: list[list[object]] = []
    for (site, reports), accuracy in zip(one.details.items(), one.by_site, strict=True):
        last: Mapping[str, int] = reports[-1] if reports else {}
        rows.append(
            [
                *named,
                *(level for _, level in run.point),
                site,
                *(f"{share:.6f}" for share in (accuracy, one.llm_before, one.llm_accuracy)),
                *(last.get(name, 0) for name in _COUNTS),
                f"{one.spent:.6f}",
                *(f"{seconds / sites:.4f}" for seconds in (one.cpu_s, one.alone_s)),
                transfers,
            ]
        )
    return rows


def parse_runs(text: str, *, where: str) -> list[Run]:
    """Read what `csv_text` wrote, or a version of it before there were draws.

    A column of another name is a factor. Of a study's rounds the last one's counts are there. A
    cost that an old file lacks is NaN.

    Raises: ParameterError: a column is missing, a value cannot be read, or a site comes twice in a
        run.
    """
    reader = csv.DictReader(io.StringIO(text), strict=True)
    columns = tuple(reader.fieldnames or ())
    missing = {*_NAMED, *_AFTER} - _LATER - set(columns)
    factors = [name for name in columns if name not in {*_NAMED, *_AFTER}]
    if missing:
        raise ParameterError(f"{where}: expected a column {', '.join(sorted(missing))}")
    groups: dict[RunKey, list[_Line]] = {}
    try:
        for row in reader:
            groups.setdefault(_key(row, factors), []).append(_line(row))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ParameterError(f"{where}, line {reader.line_num}: cannot be read: {error}") from error
    return [_run(key, lines, where=where) for key, lines in groups.items()]


class _Line(NamedTuple):
    site: str
    measured: tuple[float, ...]
    counts: dict[str, int]
    costs: tuple[float, ...]
    transfers: tuple[dict[str, int | bool], ...]


def _key(row: Mapping[str, str], factors: Sequence[str]) -> RunKey:
    return RunKey(
        tuple((name, json.dumps(json.loads(row[name]))) for name in factors),
        # Older files name an epsilon that is not the largest here, too.
        row["condition"].partition("@")[0],
        # Empty in older files for conditions without privacy.
        float(row["epsilon"] or "inf"),
        int(row["seed"]),
        int(row.get("draw", "1")),
    )


def _line(row: Mapping[str, str]) -> _Line:
    measured = tuple(float(row[name]) for name in _MEASURED)
    if not all(0.0 <= share <= 1.0 for share in measured):
        raise ValueError(f"expected shares in [0, 1], got {measured}")
    return _Line(
        site=row["site"],
        measured=measured,
        counts={name: int(row[name]) for name in _COUNTS},
        costs=tuple(float(row.get(name, "nan")) for name in _COSTS),
        transfers=tuple(json.loads(row.get("transfers") or "[]")),
    )


def _run(key: RunKey, lines: Sequence[_Line], *, where: str) -> Run:
    if len({line.site for line in lines}) < len(lines):
        raise ParameterError(
            f"{where}: {key.condition} at seed {key.seed}, epsilon {key.epsilon:g}, draw "
            f"{key.draw} has a site twice; give every run once"
        )
    by_site = tuple(line.measured[0] for line in lines)
    _, llm_before, llm_accuracy = lines[0].measured
    return Run(
        point=key.point,
        draw=key.draw,
        outcome=Outcome(
            condition=key.condition,
            epsilon=key.epsilon,
            seed=key.seed,
            accuracy=math.fsum(by_site) / len(by_site),
            by_site=by_site,
            llm_before=llm_before,
            llm_accuracy=llm_accuracy,
            spent=lines[0].costs[0],
            cpu_s=math.fsum(line.costs[1] for line in lines),
            alone_s=math.fsum(line.costs[2] for line in lines),
            details={line.site: [line.counts] for line in lines},
            transfers=lines[0].transfers,
        ),
    )
