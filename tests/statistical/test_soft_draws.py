"""Samples drawn by lot come as often as their values say, first and later places alike."""

from __future__ import annotations

import itertools

import numpy as np
from alpha import ALPHA
from scipy import stats

from lada_secure.allocation.draws import soft_order, stratum_quotas
from lada_secure.allocation.selection import pick

VALUES = np.array([0.4, 0.3, 0.2, 0.1, 0.0])
DRAWS = 4_000


def chance(chosen: tuple[int, ...]) -> float:
    """Of drawing these samples in any order, one after the other, by value among what is left."""
    total = 0.0
    for order in itertools.permutations(chosen):
        left, found = float(VALUES.sum()), 1.0
        for at in order:
            found *= VALUES[at] / left
            left -= VALUES[at]
        total += found
    return total


def test_pairs_are_drawn_without_replacement_by_their_values() -> None:
    """n = 4,000 draws of 2 of 5 catch a chance that is 4 points off at ALPHA."""
    everything = np.ones(len(VALUES), dtype=np.bool_)
    pairs = list(itertools.combinations(range(4), 2))
    counts = dict.fromkeys(pairs, 0)
    for seed in range(DRAWS):
        order = soft_order(VALUES, seed=(seed, 0))
        first, second = np.flatnonzero(pick(order, everything, quota=2, seed=0)).tolist()
        # What is worth nothing is never among them: this would be a KeyError.
        counts[first, second] += 1
    expected = [DRAWS * chance(pair) for pair in pairs]
    assert abs(sum(expected) - DRAWS) < 1e-6
    assert stats.chisquare([counts[pair] for pair in pairs], expected).pvalue > ALPHA


def test_on_average_a_stratum_gets_exactly_its_part() -> None:
    """n = 4,000 splits of 4 over parts of 0.4 to 1.6 catch a mean that is 0.04 off at ALPHA."""
    shares = np.array([1.0, 2.0, 3.0, 4.0])
    given = np.array(
        [stratum_quotas(shares, 4, available=[9] * 4, seed=(seed, 1)) for seed in range(DRAWS)]
    )
    for stratum, exact in enumerate(4 * shares / shares.sum()):
        low = int(np.floor(exact))
        more = int((given[:, stratum] == low + 1).sum())
        assert set(given[:, stratum].tolist()) <= {low, low + 1}
        assert stats.binomtest(more, DRAWS, exact - low).pvalue > ALPHA
