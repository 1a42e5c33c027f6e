"""Allocation: strategies that value cells.

All strategies stand behind one function, `cell_utilities`, so that an experiment changes one name.
What a sample is worth within its cell is another choice: `lada_secure.allocation.draws`. The
utilities leave the site only encrypted under its own key; the scores come back encrypted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lada_secure.allocation.reward_model import CellBeliefs, Forecast
from lada_secure.arrays import BoolArray, FloatArray, float_vector
from lada_secure.errors import ParameterError
from lada_secure.ranges import zero_or_more


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellView:
    """All that a strategy may look at: the site's beliefs and its filter's forecast.

    agreement: (d,) in [0, 1], how sure it is that a cell's paths agree with the private records
    (`lada_secure.allocation.agreement`); None where nothing was measured. lacking: (d,) in [0, 1],
    how much of its topic's pool samples the SLM lacks; None where it was not asked.
    """

    beliefs: CellBeliefs
    forecast: Forecast
    agreement: FloatArray | None = None
    lacking: FloatArray | None = None

    def promise(self, alpha: float) -> FloatArray:
        """Exploitation + alpha x exploration, (d,), in units of reward."""
        return self.forecast.exploitation + alpha * self.forecast.exploration


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A named way to value cells.

    `utility` maps a view and alpha to (d,) float64 of any scale. `sample_order` says how samples
    rank that pass the threshold: by their values (the plan says which), or at random. `by_cluster`:
    the quota is split over clusters by utility in every round. `mass_first`: the first round's is
    split by mass alone, because the utility reads what is not known yet. `reads_slm`: the utility
    reads what the SLM makes of the pool. `judged`: rationales are judged by the DP reference model
    and by data valuation, where the plan has them, and those that contradict the private records
    are not trained on; a cell's worth is multiplied by how surely its rationales agree with the
    records. Without it nothing is judged or paid for.
    """

    name: str
    summary: str
    utility: Callable[[CellView, float], FloatArray]
    sample_order: str = "scores"
    by_cluster: bool = False
    mass_first: bool = True
    reads_slm: bool = False
    judged: bool = False


def _utility_lada(view: CellView, alpha: float) -> FloatArray:
    # A cell that is predicted to do harm is worth 0 however much mass lies on it; without the
    # floor, the least relevant of the harmful cells would rank highest among them.
    promise = np.maximum(view.promise(alpha), 0.0)
    if not promise.any():
        # Noisy training can lower every p at once. Then rewards tell no cells apart, and band and
        # mass still do.
        promise = np.ones_like(promise)
    return view.beliefs.band * view.beliefs.mass_share * promise


def _utility_band(view: CellView, _alpha: float) -> FloatArray:
    return view.beliefs.band * view.beliefs.mass_share


def _utility_domain(view: CellView, _alpha: float) -> FloatArray:
    return view.beliefs.mass_share.copy()


def _utility_gain(view: CellView, _alpha: float) -> FloatArray:
    # The site's side of the gap: how much of the site's data lies here, and how little of such
    # questions the SLM knows. Not the band: a cell that the SLM always gets wrong has the most to
    # gain, if the LLM knows it, and whether it does is the other factor of a score.
    if view.lacking is None:
        raise ParameterError("gain: expected what the SLM lacks of every topic, got nothing")
    return view.beliefs.mass_share * view.lacking


def _utility_random(view: CellView, _alpha: float) -> FloatArray:
    return np.ones(view.beliefs.grid.cells, dtype=np.float64)


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            name="lada",
            summary="learnability band x noised mass x (exploitation + alpha exploration)",
            utility=_utility_lada,
        ),
        Strategy(
            name="band",
            summary="learnability band x noised mass, without the reward model",
            utility=_utility_band,
        ),
        Strategy(
            name="guided",
            summary="lada x how surely the cell's paths agree with the private records",
            utility=_utility_lada,
            by_cluster=True,
            judged=True,
        ),
        Strategy(
            name="valuation",
            summary="noised mass x how surely the cell's paths agree with the private records",
            utility=_utility_domain,
            by_cluster=True,
            judged=True,
        ),
        Strategy(
            name="domain", summary="noised mass alone", utility=_utility_domain, by_cluster=True
        ),
        Strategy(
            name="gain",
            summary="noised mass x how much of the topic the SLM lacks",
            utility=_utility_gain,
            by_cluster=True,
            mass_first=False,
            reads_slm=True,
        ),
        Strategy(
            name="valued_gain",
            summary="gain x how surely the cell's paths agree with the private records",
            utility=_utility_gain,
            by_cluster=True,
            mass_first=False,
            reads_slm=True,
            judged=True,
        ),
        Strategy(
            name="random",
            summary="any sample whose path is right, at random",
            utility=_utility_random,
            sample_order="random",
        ),
    )
}


def strategy(name: str) -> Strategy:
    """Look a strategy up by name.

    Raises: ParameterError: unknown name.
    """
    try:
        return STRATEGIES[name]
    except KeyError:
        raise ParameterError(
            f"allocation strategy: expected one of {', '.join(sorted(STRATEGIES))}, got {name!r}"
        ) from None


def cell_utilities(name: str, view: CellView, *, alpha: float) -> FloatArray:
    """Value every cell; this vector is what a site encrypts.

    Args: name: a key of `STRATEGIES`. alpha: weight of exploration, >= 0; 0 switches it off.
    Returns: (d,) float64 in [-1, 1]; the largest magnitude is 1, so a threshold on scores is
        relative to the best cell. All zeros where no cell is worth anything.
    Raises: ParameterError: unknown name, alpha < 0 or not finite.
    """
    zero_or_more(alpha=alpha)
    rule, cells = strategy(name), view.beliefs.grid.cells
    utility = float_vector("worth of cells", rule.utility(view, alpha), length=cells)
    if rule.judged and view.agreement is not None:
        utility = utility * view.agreement
    largest = float(np.abs(utility).max())
    if largest == 0.0:
        return np.zeros_like(utility)
    return np.clip(utility / largest, -1.0, 1.0)


def rationale_screen(probabilities: npt.ArrayLike, low: float, high: float) -> BoolArray:
    """Which received paths to train on: those whose p under the SLM lies in [low, high], (n,).

    Below, the SLM cannot follow the path (or the path is bad); above, it knows it already.

    Raises: ParameterError: not 0 <= low < high <= 1.
    """
    values = float_vector("probabilities", probabilities)
    if not 0.0 <= low < high <= 1.0:
        raise ParameterError(f"path screen: expected 0 <= low < high <= 1, got {low} and {high}")
    return (values >= low) & (values <= high)
