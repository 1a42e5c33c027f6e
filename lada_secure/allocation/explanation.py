"""Why each cell was or was not allocated, in a form for reports and people."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy.typing as npt

from lada_secure.allocation.gap import CellMeans
from lada_secure.allocation.strategies import CellView
from lada_secure.arrays import float_vector, index_vector
from lada_secure.canonical import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class CellExplanation:
    """One cell in one round.

    `mass` is the noised share of the site's data in the cell's cluster, `band` the learnability
    band, `exploitation` and `exploration` the filter's forecast in units of reward, `agreement` how
    sure it is that the cell's paths agree with the site's records, None where nothing was judged,
    `utility` what was encrypted, `picked` the number of samples the site demanded, `trained` how
    many of them passed the path screen, `reward` what they brought, or None where nothing was
    trained.
    """

    cell: int
    cluster: int
    difficulty: int
    mass: float
    probability: float
    band: float
    exploitation: float
    exploration: float
    agreement: float | None
    utility: float
    picked: int
    trained: int
    reward: float | None

    def to_json(self) -> dict[str, Json]:
        """JSON form for report.json; numbers rounded to 6 decimals."""
        return {
            key: round(value, 6) if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }


def explain_cells(
    view: CellView,
    utilities: npt.ArrayLike,
    *,
    picked_cells: npt.ArrayLike,
    rewards: CellMeans,
) -> tuple[CellExplanation, ...]:
    """Explain a round cell by cell.

    Args: utilities: (d,) from `cell_utilities`. picked_cells: cell number of every sample that
        the site demanded and got. rewards: from `cell_rewards`, over what it trained on.
    Returns: One explanation per cell, in the order of cells.
    """
    beliefs = view.beliefs
    grid = beliefs.grid
    values = float_vector("utilities", utilities, length=grid.cells)
    places = index_vector("cells of picked samples", picked_cells, below=grid.cells)
    picked = [0] * grid.cells
    for place in places.tolist():
        picked[place] += 1
    clusters = grid.clusters_of_cells()
    bins = grid.bins_of_cells()
    band = beliefs.band
    return tuple(
        CellExplanation(
            cell=cell,
            cluster=int(clusters[cell]),
            difficulty=int(bins[cell]),
            mass=float(beliefs.mass_share[cell]),
            probability=float(beliefs.probability[cell]),
            band=float(band[cell]),
            exploitation=float(view.forecast.exploitation[cell]),
            exploration=float(view.forecast.exploration[cell]),
            agreement=None if view.agreement is None else float(view.agreement[cell]),
            utility=float(values[cell]),
            picked=picked[cell],
            trained=int(rewards.count[cell]),
            reward=float(rewards.mean[cell]) if rewards.count[cell] else None,
        )
        for cell in range(grid.cells)
    )
