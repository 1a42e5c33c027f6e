"""What a site wrote about its allocation: found, read, told in words. Nothing of it leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.table import Table

from lada_clients.net.study_folder import find_study_folder
from lada_protocol.studies import STUDIES
from lada_secure.allocation.fallback import Fallback
from lada_secure.errors import ParameterError
from lada_secure.storage.whole_files import read_file

_FILE = re.compile(r"allocation-round-(\d{1,6})\.json")
_STATE = "state"
# A share of the data this many times an equal share is worth a word.
_MUCH_MASS = 1.5
_WIDE_BAND = 0.75
_NARROW_BAND = 0.25
_SMALL_REWARD = 0.005

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Reward = Annotated[float, Field(ge=-1.0, le=1.0)]


class _Part(BaseModel):
    # Newer software may write more; what is known is read.
    model_config = ConfigDict(frozen=True, extra="ignore")


class ExplainedCell(_Part):
    """One cell as `lada_secure.allocation.explanation` writes it."""

    cell: Annotated[int, Field(ge=0)]
    cluster: Annotated[int, Field(ge=0)]
    difficulty: Annotated[int, Field(ge=0)]
    mass: Share
    lacking: Share | None = None
    probability: Share
    band: Share
    exploitation: Reward
    exploration: Reward
    agreement: Share | None = None
    utility: Reward
    picked: Annotated[int, Field(ge=0)]
    trained: Annotated[int, Field(ge=0)]
    reward: Reward | None


class ExplainedRound(_Part):
    """One round's file."""

    round: Annotated[int, Field(ge=0)]
    cells: tuple[ExplainedCell, ...]
    fallback: Fallback | None = None

    def allocated(self) -> list[ExplainedCell]:
        """Cells that got samples, those with most first."""
        return sorted(
            (cell for cell in self.cells if cell.picked), key=lambda cell: (-cell.picked, cell.cell)
        )


def site_study(run: Path, site: str | None, study: str | None) -> tuple[str, Path]:
    """The site's name, and its folder of the study.

    Args: run: a mock run's folder, or one site's own folder or state folder; there `site` may be
        left out. study: its id; it may be left out where the site took part in one only.
    Raises: ParameterError: no such folder, or no or several sites or studies of that name.
    """
    if not run.is_dir():
        raise ParameterError(
            f"{run}: no such folder; expected the folder of a mock run or of a site"
        )
    states = {found.parent.name: found.parent / _STATE for found in run.glob("*/site.toml")}
    if not states:
        own = run / _STATE if (run / _STATE).is_dir() else run
        if not (own / STUDIES).is_dir():
            raise ParameterError(
                f"{run}: no run and no site: expected SITE/state/{STUDIES}, state/{STUDIES} or "
                f"{STUDIES} in it. A site makes it when it joins its first study"
            )
        states = {(run if own != run else run.parent).absolute().name: own}
    first, *others = sorted(states)
    if site is None and others:
        raise ParameterError(f"{run} has several sites; name one: --site {first}")
    name = site or first
    if name not in states:
        raise ParameterError(f"--site {name}: {run} has {', '.join(sorted(states))}")
    return name, find_study_folder(states[name], study)


def read_rounds(study: Path, wanted: int | None) -> list[ExplainedRound]:
    """All rounds in order, or the one that is wanted.

    Raises: ParameterError: none yet, not that one, or a file that is damaged.
    """
    found = {
        int(match[1]): path
        for path in study.glob("allocation-round-*.json")
        if (match := _FILE.fullmatch(path.name)) is not None
    }
    if not found:
        raise ParameterError(
            f"{study}: no allocation yet; a site writes it at the end of its first round"
        )
    if wanted is not None and wanted not in found:
        there = ", ".join(str(number) for number in sorted(found))
        raise ParameterError(f"--round {wanted}: {study} has rounds {there}")
    numbers = sorted(found) if wanted is None else [wanted]
    return [_read(found[number], number) for number in numbers]


def _read(path: Path, number: int) -> ExplainedRound:
    try:
        found = ExplainedRound.model_validate_json(read_file(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ParameterError(f"{path}: {where}: {first['msg']}; the file is damaged") from error
    if found.round != number:
        raise ParameterError(f"{path}: says round {found.round}; the file is damaged")
    return found


def facts_of(told: ExplainedRound) -> dict[str, Any]:
    """One round for machines, the words included; `fallback` is null in a round as planned."""
    cells = [
        {**cell.model_dump(), "why": why, "brought": brought} for cell, why, brought in _told(told)
    ]
    found = told.fallback
    fallback = None if found is None else {**asdict(found), "told": found.sentence}
    return {"round": told.round, "fallback": fallback, "cells": cells}


def table_of(site: str, told: ExplainedRound) -> Table:
    """One round for people."""
    cells = told.allocated()
    picked = sum(cell.picked for cell in cells)
    title = f"{site}, round {told.round}: {picked} samples from {len(cells)} of "
    table = Table(title=f"{title}{len(told.cells)} cells", show_lines=True)
    for name in ("topic", "difficulty", "samples", "trained"):
        table.add_column(name, justify="right")
    table.add_column("why")
    table.add_column("brought")
    for cell, *words in _told(told):
        numbers = (cell.cluster, cell.difficulty, cell.picked, cell.trained)
        table.add_row(*(str(number) for number in numbers), *words)
    return table


def _told(told: ExplainedRound) -> Iterator[tuple[ExplainedCell, str, str]]:
    clusters = len({cell.cluster for cell in told.cells}) or 1
    for cell in told.allocated():
        why = _reasons(cell, clusters=clusters, first_round=told.round == 0)
        if told.fallback is not None and told.fallback.action == "any_topic":
            # Its mass and forecast had no part in it.
            why = "any topic: this round fell back"
        yield cell, why, _outcome(cell, told.fallback)


def _reasons(cell: ExplainedCell, *, clusters: int, first_round: bool) -> str:
    """Why samples of this cell were wanted, strongest reason first.

    Args: clusters: how many the study has. first_round: its quotas follow masses alone.
    """
    told: list[str] = []
    if cell.mass * clusters >= _MUCH_MASS:
        told.append(f"{cell.mass:.0%} of the site's data lies in this topic")
    elif cell.mass > 0:
        told.append(f"some of the site's data ({cell.mass:.0%}) lies in this topic")
    else:
        told.append("none of the site's data lies in this topic")
    if cell.lacking is not None and cell.lacking >= _WIDE_BAND:
        told.append(f"the SLM lacks most of the topic's pool samples ({cell.lacking:.0%})")
    elif cell.lacking is not None and cell.lacking <= _NARROW_BAND:
        told.append(f"the SLM knows most of the topic's pool samples ({1 - cell.lacking:.0%})")
    if first_round:
        told.append("first round: quotas by topic")
    if cell.agreement is not None and cell.agreement >= _WIDE_BAND:
        told.append(f"its paths agree with the site's records ({cell.agreement:.0%} sure)")
    elif cell.agreement is not None and cell.agreement <= _NARROW_BAND:
        told.append(f"its paths contradict the site's records ({1 - cell.agreement:.0%} sure)")
    if cell.band >= _WIDE_BAND:
        told.append(f"within reach (p {cell.probability:.2f})")
    elif cell.band <= _NARROW_BAND:
        side = "almost known" if cell.probability > 0.5 else "far out of reach"
        told.append(f"{side} (p {cell.probability:.2f})")
    if not first_round:
        told.append(_forecast(cell))
    return "; ".join(told)


def _forecast(cell: ExplainedCell) -> str:
    promise = f"the filter expects {cell.exploitation:+.3f}"
    if abs(cell.exploration) < _SMALL_REWARD:
        return promise
    if cell.exploration > 0:
        return f"{promise} and would explore, it may be {cell.exploration:.3f} better"
    return f"{promise}, or {-cell.exploration:.3f} less"


def _outcome(cell: ExplainedCell, fallback: Fallback | None) -> str:
    """What training on the cell brought."""
    if cell.reward is None and fallback is not None and fallback.action == "no_pool":
        return "nothing trained: this round did without the pool"
    if cell.reward is None:
        return "nothing trained: no path passed the screen" if cell.picked else "nothing trained"
    if abs(cell.reward) < _SMALL_REWARD:
        return f"no change ({cell.reward:+.3f})"
    return f"p {'rose' if cell.reward > 0 else 'fell'} by {abs(cell.reward):.3f}"
