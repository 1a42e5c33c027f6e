"""The reward model: what training on a cell will bring, and how far off that forecast may be.

Two small networks as in EE-Net (Ban et al., ICLR 2022): the exploitation network f1 predicts the
reward of a cell from its features; the exploration network f2 predicts the residual r - f1(x)
from the gradient of f1 at x. EE-Net pools that gradient by a convolution, which needs 48 features
or more; here it is averaged in blocks and normalised, which works at any width.

Histories are tiny (2 to 60 observations), so both networks start as the zero function around a
shrunken mean and are pulled back to it: no history gives the prior, little history stays near it.

Inputs are released statistics and losses of DP-trained models on public samples. The filter is
then post-processing and costs no privacy; whoever calls it must feed it nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.gap import CellMeans
from lada_secure.allocation.reward_networks import ZeroStartNetwork, pooled_unit_rows
from lada_secure.arrays import (
    FloatArray,
    IntArray,
    float_matrix,
    float_vector,
    frozen,
    index_vector,
)
from lada_secure.canonical import Json
from lada_secure.errors import ParameterError

# Width of both networks' hidden layers, and of the pooled gradient.
_HIDDEN = 16
_GRADIENT_FEATURES = 24
# What is expected of a cell before anything is known, with the weight of so many samples.
PRIOR_REWARD = 0.05
_PRIOR_SAMPLES = 8.0
# Rounds beyond this many are learned from together, which bounds the time of a fit.
_SEPARATE_ROUNDS = 6
_SMALLEST_SPREAD = 0.01
_RANGES = {
    "mass_share": (0.0, 1.0),
    "mean_loss": (0.0, 1.0),
    "probability": (0.0, 1.0),
    "last_reward": (-1.0, 1.0),
    "picks": (0.0, np.inf),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellBeliefs:
    """What a site believes of every cell before it allocates; all arrays are (d,) float64.

    | field | meaning | range |
    |---|---|---|
    | mass_share | share of the site's own noised mass in the cell's cluster | [0, 1] |
    | mean_loss | noised mean loss of that cluster over the loss clip | [0, 1] |
    | probability | mean p = exp(-loss) of the SLM on pool samples of the cell | [0, 1] |
    | last_reward | reward when last trained on, 0 if never | [-1, 1] |
    | picks | samples of the cell trained on so far | >= 0 |
    """

    grid: CellGrid
    mass_share: FloatArray
    mean_loss: FloatArray
    probability: FloatArray
    last_reward: FloatArray
    picks: FloatArray

    def __post_init__(self) -> None:
        """Raises: ParameterError: an array of the wrong length, not finite, or out of range."""
        for name, (low, high) in _RANGES.items():
            values = float_vector(
                name, getattr(self, name), length=self.grid.cells, low=low, high=high
            )
            object.__setattr__(self, name, frozen(values))

    @property
    def band(self) -> FloatArray:
        """Learnability band 4 p (1 - p), (d,) in [0, 1]: 0 for mastered and for hopeless cells.

        p (1 - p) is the variance of a success with probability p, which bounds how far one step of
        training can move it; the factor puts its largest value, at p = 1/2, to 1.
        """
        return 4.0 * self.probability * (1.0 - self.probability)

    def features(self) -> FloatArray:
        """Inputs of the filter, (d, 8 + clusters) float64, all in [-1, 1].

        Columns: mass over the largest mass, mean loss, p, band, last reward over 0.1 (clipped),
        log of picks, 1 where the cell was ever trained on, difficulty, one-hot cluster.
        """
        grid = self.grid
        one_hot_cluster = np.eye(grid.clusters)[grid.clusters_of_cells()]
        columns = (
            self.mass_share / max(float(self.mass_share.max()), 1e-12),
            self.mean_loss,
            self.probability,
            self.band,
            np.clip(self.last_reward / 0.1, -1.0, 1.0),
            np.minimum(np.log1p(self.picks) / np.log1p(1000.0), 1.0),
            (self.picks > 0).astype(np.float64),
            grid.bins_of_cells() / max(grid.bins - 1, 1),
        )
        return np.concatenate([np.stack(columns, axis=1), one_hot_cluster], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundObservations:
    """What one round taught: features before training, rewards after it.

    cells (m,) int64; features (m, F) float64 as they stood when the cells were chosen; rewards
    (m,) in [-1, 1]; samples (m,) >= 1, the number of samples behind each reward.
    """

    round_id: int
    cells: IntArray
    features: FloatArray
    rewards: FloatArray
    samples: FloatArray

    def __post_init__(self) -> None:
        """Raises: ParameterError: shapes that differ, or values out of range."""
        cells = index_vector("cells", self.cells, below=2**31)
        features = float_matrix("features", self.features, rows=len(cells))
        rewards = float_vector("rewards", self.rewards, length=len(cells), low=-1.0, high=1.0)
        samples = float_vector("samples", self.samples, length=len(cells), low=1.0)
        for name, values in (("features", features), ("rewards", rewards), ("samples", samples)):
            object.__setattr__(self, name, frozen(values))
        object.__setattr__(self, "cells", frozen(cells))

    def to_json(self) -> dict[str, Json]:
        """JSON form, as part of `RewardHistory.to_json`."""
        arrays = ("cells", "features", "rewards", "samples")
        return {"round_id": self.round_id, **{one: getattr(self, one).tolist() for one in arrays}}


def observations(beliefs: CellBeliefs, rewards: CellMeans, *, round_id: int) -> RoundObservations:
    """Keep what a round taught about the cells that were trained on.

    Args: beliefs: as they stood before the round. rewards: from `cell_rewards`.
    """
    seen = rewards.seen
    return RoundObservations(
        round_id=round_id,
        cells=seen,
        features=beliefs.features()[seen],
        rewards=rewards.mean[seen],
        samples=rewards.count[seen].astype(np.float64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardHistory:
    """All observations of a site so far, oldest round first."""

    rounds: tuple[RoundObservations, ...] = ()

    def with_round(self, observed: RoundObservations) -> RewardHistory:
        """The history with one more round.

        Raises: ParameterError: the round is not later than the last one.
        """
        if self.rounds and observed.round_id <= self.rounds[-1].round_id:
            raise ParameterError(
                f"filter history: round {observed.round_id} after {self.rounds[-1].round_id}; "
                "rounds must be added once and in order"
            )
        return RewardHistory(rounds=(*self.rounds, observed))

    def picks(self, cells: int) -> FloatArray:
        """Samples trained on so far per cell, (cells,) float64."""
        total = np.zeros(cells, dtype=np.float64)
        for observed in self.rounds:
            np.add.at(total, observed.cells, observed.samples)
        return total

    def last_rewards(self, cells: int) -> FloatArray:
        """Reward of each cell when it was last trained on, 0 if never, (cells,) float64."""
        last = np.zeros(cells, dtype=np.float64)
        for observed in self.rounds:
            last[observed.cells] = observed.rewards
        return last

    def to_json(self) -> dict[str, Json]:
        """JSON form for the site's own state; `parse_history` reads it back."""
        return {"version": 1, "rounds": [observed.to_json() for observed in self.rounds]}


class _StoredRound(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    round_id: int
    cells: list[int]
    features: list[list[float]]
    rewards: list[float]
    samples: list[float]


class _StoredHistory(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    version: Literal[1]
    rounds: list[_StoredRound]


def parse_history(value: Json) -> RewardHistory:
    """Read a history from the site's own state.

    Raises: ParameterError: not what `RewardHistory.to_json` writes.
    """
    history = RewardHistory()
    try:
        for stored in _StoredHistory.model_validate(value).rounds:
            # A round that trained on nothing has no row to tell how many features there are.
            features = stored.features or np.zeros((0, 0))
            observed = RoundObservations(**{**dict(stored), "features": features})
            history = history.with_round(observed)
    # NumPy raises ValueError for rows that differ in length, pydantic one of its own.
    except ValueError as error:
        raise ParameterError(f"filter history: {error}") from error
    return history


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecast:
    """Per cell, (d,) float64 in units of reward: f1's prediction and f2's correction of it."""

    exploitation: FloatArray
    exploration: FloatArray


def forecast(history: RewardHistory, features: FloatArray, *, seed: int) -> Forecast:
    """Fit both networks to a site's history, and predict the rewards of cells.

    No history gives the prior for every cell. f2 learns from residuals as they stood when each
    round was chosen: round t's observations against the f1 of rounds before t, with the gradients
    of that f1. Residuals of a network on its own training data would say that nothing is uncertain.

    Args: features: (d, F) of `CellBeliefs.features`. seed: of the initial weights.
    Raises: ParameterError: a round whose features have another width.
    """
    width = features.shape[1]
    generator = np.random.default_rng(seed)
    first = ZeroStartNetwork(width, _HIDDEN, generator)
    second = ZeroStartNetwork(_GRADIENT_FEATURES, _HIDDEN, generator)
    rounds = [observed for observed in history.rounds if len(observed.cells)]
    for observed in rounds:
        if observed.features.shape[1] != width:
            raise ParameterError(
                f"filter history: round {observed.round_id} has {observed.features.shape[1]} "
                f"features per cell, expected {width}; the cell grid changed, start a new history"
            )
    centre, spread = _centre_and_spread(rounds)
    gradients: list[FloatArray] = []
    residuals: list[FloatArray] = []
    early = max(len(rounds) - _SEPARATE_ROUNDS, 0)
    for end in range(early, len(rounds)):
        chunk = rounds[: end + 1] if end == early else rounds[end : end + 1]
        inputs, targets, _ = _examples(chunk, centre, spread)
        gradients.append(pooled_unit_rows(first.gradients(inputs), _GRADIENT_FEATURES))
        residuals.append(targets - first.outputs(inputs))
        first.fit(*_examples(rounds[: end + 1], centre, spread))
    if rounds:
        weights = _examples(rounds, centre, spread)[2]
        second.fit(np.concatenate(gradients), np.concatenate(residuals), weights)
    own_gradients = pooled_unit_rows(first.gradients(features), _GRADIENT_FEATURES)
    # Rewards are centre + spread x outputs. A correction of more than two spreads is beyond
    # anything that was observed.
    correction = spread * np.clip(second.outputs(own_gradients), -2.0, 2.0)
    return Forecast(
        exploitation=np.clip(centre + spread * first.outputs(features), -1.0, 1.0),
        exploration=np.clip(correction, -1.0, 1.0),
    )


def _centre_and_spread(rounds: Sequence[RoundObservations]) -> tuple[float, float]:
    """Mean reward, shrunken to the prior, and the deviation around it in units of reward."""
    if not rounds:
        return PRIOR_REWARD, _SMALLEST_SPREAD
    rewards = np.concatenate([observed.rewards for observed in rounds])
    samples = np.concatenate([observed.samples for observed in rounds])
    total = float((samples * rewards).sum()) + _PRIOR_SAMPLES * PRIOR_REWARD
    centre = total / (float(samples.sum()) + _PRIOR_SAMPLES)
    variance = float((samples * (rewards - centre) ** 2).sum() / samples.sum())
    return centre, max(float(np.sqrt(variance)), _SMALLEST_SPREAD)


def _examples(
    rounds: Sequence[RoundObservations], centre: float, spread: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Features (m, F), standardised rewards (m,), and weights (m,) below 1.

    A mean over n samples is less noisy the larger n is, but never free of noise, hence
    n / (n + 4) rather than n.
    """
    features = np.concatenate([observed.features for observed in rounds])
    rewards = np.concatenate([observed.rewards for observed in rounds])
    samples = np.concatenate([observed.samples for observed in rounds])
    return features, (rewards - centre) / spread, samples / (samples + 4.0)
