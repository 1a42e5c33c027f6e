"""Finding and reading what a site wrote about its allocation; nothing here leaves the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lada_clients.net.study_folder import STUDIES, find_study_folder
from lada_secure.errors import ParameterError
from lada_secure.storage.whole_files import read_file

_FILE = re.compile(r"allocation-round-(\d{1,6})\.json")
_STATE = "state"

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
    name, state = _site_state(run, site)
    return name, find_study_folder(state, study)


def _site_state(run: Path, site: str | None) -> tuple[str, Path]:
    if not run.is_dir():
        raise ParameterError(
            f"{run}: no such folder; expected the folder of a mock run or of a site"
        )
    sites = sorted(settings.parent.name for settings in run.glob("*/site.toml"))
    if sites:
        if site is None and len(sites) > 1:
            raise ParameterError(f"{run} has several sites; name one: --site {sites[0]}")
        name = site or sites[0]
        if name not in sites:
            raise ParameterError(f"--site {name}: {run} has {', '.join(sites)}")
        return name, run / name / _STATE
    own = run / _STATE if (run / _STATE).is_dir() else run
    if not (own / STUDIES).is_dir():
        raise ParameterError(
            f"{run}: no run and no site: expected SITE/state/{STUDIES}, state/{STUDIES} or "
            f"{STUDIES} in it. A site makes it when it joins its first study"
        )
    name = (run if own != run else run.parent).absolute().name
    if site is not None and site != name:
        raise ParameterError(f"--site {site}: {run} is the folder of {name} alone")
    return name, own


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
