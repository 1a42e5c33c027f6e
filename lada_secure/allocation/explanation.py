"""Why each cell was or was not allocated, in a form for reports and people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lada_secure.allocation.gap import CellMeans
from lada_secure.allocation.strategies import CellView
from lada_secure.arrays import FloatArray, float_vector, index_vector
from lada_secure.canonical import Json


def explain_cells(
    view: CellView, utilities: npt.ArrayLike, *, picked_cells: npt.ArrayLike, rewards: CellMeans
) -> tuple[dict[str, Json], ...]:
    """Explain a round cell by cell, as JSON objects with numbers rounded to 6 decimals.

    `mass` is the noised share of the site's data in the cell's cluster, `error` the SLM's expected
    error on it, `band` the learnability band, `exploitation` and `exploration` the filter's
    forecast in units of reward, `agreement` how sure it is that the cell's paths agree with the
    site's records, None where nothing was judged, `utility` what was encrypted, `picked` the number
    of samples the site demanded, `trained` how many of them passed the path screen, `reward` what
    they brought, or None where nothing was trained.

    Args: utilities: (d,) from `cell_utilities`. picked_cells: cell number of every sample that
        the site demanded and got. rewards: from `cell_rewards`, over what it trained on.
    Returns: One explanation per cell, in the order of cells.
    """
    beliefs, forecast = view.beliefs, view.forecast
    grid = beliefs.grid
    picked = index_vector("cells of picked samples", picked_cells, below=grid.cells)
    nothing: list[None] = [None] * grid.cells
    columns: dict[str, Sequence[Json]] = {
        "cell": range(grid.cells),
        "cluster": grid.clusters_of_cells().tolist(),
        "difficulty": grid.bins_of_cells().tolist(),
        "mass": _rounded(beliefs.mass_share),
        "lacking": nothing if view.lacking is None else _rounded(view.lacking),
        "probability": _rounded(beliefs.probability),
        "band": _rounded(beliefs.band),
        "exploitation": _rounded(forecast.exploitation),
        "exploration": _rounded(forecast.exploration),
        "agreement": nothing if view.agreement is None else _rounded(view.agreement),
        "utility": _rounded(float_vector("utilities", utilities, length=grid.cells)),
        "picked": np.bincount(picked, minlength=grid.cells).tolist(),
        "trained": rewards.count.tolist(),
        "reward": [
            mean if count else None
            for mean, count in zip(_rounded(rewards.mean), rewards.count, strict=True)
        ],
    }
    return tuple(
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    )


def _rounded(values: FloatArray) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
