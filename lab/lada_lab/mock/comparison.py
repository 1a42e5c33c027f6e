"""Several runs side by side: held-out gains per site and strategy, with standard errors.

Two standard errors are told, because they answer two questions. `standard_error` is of the held-out
records alone, as if accuracies before and after were of different records (they are of the same,
so it is too large rather than too small). `between_runs` is what the runs' own spread says: seeds,
privacy noise and records together; with three runs it is itself uncertain by half.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lada_lab.mock.report import AccuracyPoint, Difference, Report
from lada_secure.errors import ParameterError

ALL_SITES = "all sites"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gain(_Part):
    """Held-out accuracy under one strategy, means over runs; of one site, or of all equally."""

    strategy: str
    site: str
    runs: int
    records: Annotated[int, Field(description="held-out records of all runs")]
    before: float
    after: float
    gain: float
    standard_error: Annotated[float, Field(description="of the gain, from the records")]
    between_runs: Annotated[float | None, Field(description="from the runs' spread; null for one")]


class Comparison(_Part):
    """What `lada mock compare --json` prints."""

    preset: str
    gains: tuple[Gain, ...]
    differences: tuple[Difference, ...]


class _Measured(BaseModel):
    """One site in one run."""

    strategy: str
    seed: int
    site: str
    before: AccuracyPoint
    after: AccuracyPoint


def read_reports(folders: Sequence[Path]) -> list[Report]:
    """Reports of finished runs of one preset.

    Raises: ParameterError: no report, one of a run that failed, or runs of different presets.
    """
    reports = []
    for folder in folders:
        path = folder / "report.json"
        try:
            report = Report.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ParameterError(
                f"{path}: {error.strerror}; name folders of `lada mock run --out`"
            ) from error
        except ValidationError as error:
            raise ParameterError(f"{path}: not a report: {error.errors()[0]['msg']}") from error
        if report.run.outcome != "finished":
            raise ParameterError(f"{path}: the run failed ({report.run.failure}); leave it out")
        reports.append(report)
    if len({(one.run.preset, one.run.rounds) for one in reports}) > 1:
        told = ", ".join(f"{one.run.preset} in {one.run.rounds} rounds" for one in reports)
        raise ParameterError(f"expected runs of one preset and as many rounds, got {told}")
    return reports


def compare(reports: Sequence[Report]) -> Comparison:
    """Gains of every strategy and site, and how the strategies differ.

    Args: reports: at least one, of one preset. Two of one strategy and seed count as two runs of
        the gain; in differences, the mean of both.
    """
    measured = [
        _Measured(
            strategy=report.study.strategy,
            seed=report.run.seed,
            site=site.party,
            before=site.accuracy[0],
            after=site.accuracy[-1],
        )
        for report in reports
        for site in report.sites
        if len(site.accuracy) > 1
    ]
    strategies = list(dict.fromkeys(one.strategy for one in measured))
    sites = [*dict.fromkeys(one.site for one in measured), ALL_SITES]
    return Comparison(
        preset=reports[0].run.preset,
        gains=tuple(
            _gain(strategy, site, [one for one in measured if one.strategy == strategy])
            for strategy in strategies
            for site in sites
        ),
        differences=tuple(
            found
            for at, strategy in enumerate(strategies)
            for other in strategies[at + 1 :]
            for site in sites
            if (found := _difference(strategy, other, site, measured)) is not None
        ),
    )


def _of_site(measured: Sequence[_Measured], site: str) -> list[_Measured]:
    return [one for one in measured if site in (one.site, ALL_SITES)]


def _gain(strategy: str, site: str, measured: Sequence[_Measured]) -> Gain:
    found = _of_site(measured, site)
    by_seed: dict[int, list[float]] = defaultdict(list)
    for one in found:
        by_seed[one.seed].append(one.after.accuracy - one.before.accuracy)
    return Gain(
        strategy=strategy,
        site=site,
        runs=len(found) // len({one.site for one in found}),
        records=sum(one.after.n for one in found),
        before=fmean(one.before.accuracy for one in found),
        after=fmean(one.after.accuracy for one in found),
        gain=fmean(one.after.accuracy - one.before.accuracy for one in found),
        standard_error=_error([one.before for one in found], [one.after for one in found]),
        between_runs=_spread([fmean(values) for values in by_seed.values()]),
    )


def _difference(
    strategy: str, other: str, site: str, measured: Sequence[_Measured]
) -> Difference | None:
    """None: no seed that both ran."""
    ours, theirs = (
        _by_seed([one for one in _of_site(measured, site) if one.strategy == name])
        for name in (strategy, other)
    )
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    differences = [
        fmean(one.accuracy for one in ours[seed]) - fmean(one.accuracy for one in theirs[seed])
        for seed in seeds
    ]
    return Difference(
        strategy=strategy,
        other=other,
        site=site,
        seeds=len(seeds),
        difference=fmean(differences),
        standard_error=_error(
            *([one for seed in seeds for one in by[seed]] for by in (ours, theirs))
        ),
        between_runs=_spread(differences),
    )


def _by_seed(measured: Sequence[_Measured]) -> dict[int, list[AccuracyPoint]]:
    found: dict[int, list[AccuracyPoint]] = defaultdict(list)
    for one in measured:
        found[one.seed].append(one.after)
    return found


def _error(*groups: Sequence[AccuracyPoint]) -> float:
    """Standard error of the difference of two mean shares, as of independent records."""
    return math.sqrt(
        sum(
            sum(one.accuracy * (1.0 - one.accuracy) / one.n for one in points) / len(points) ** 2
            for points in groups
        )
    )


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
