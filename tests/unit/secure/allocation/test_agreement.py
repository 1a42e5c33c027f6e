"""From gains of single paths to which cells and paths agree with the private records."""

from __future__ import annotations

import numpy as np
import pytest

from lada_secure.allocation.agreement import agreeing_rationales, cell_agreement
from lada_secure.errors import ParameterError


def test_cells_are_sure_where_their_paths_gain_and_unseen_cells_are_even() -> None:
    gains = [1.0, 1.1, 0.9, 1.0, -0.2, -0.1, -0.3, -0.2]
    sure = cell_agreement(gains, [0, 0, 0, 0, 1, 1, 1, 1], cells=3)
    assert sure[0] > 0.95
    assert sure[1] < 0.05
    assert np.all((sure >= 0.0) & (sure <= 1.0))
    nothing = cell_agreement([], [], cells=2)
    assert nothing.tolist() == [0.5, 0.5]


def test_more_paths_make_a_cell_surer() -> None:
    def sure(count: int) -> float:
        gains = [1.5, 0.5] * count + [0.1, -0.1]
        cells = [0] * (2 * count) + [1, 1]
        return float(cell_agreement(gains, cells, cells=2)[0])

    assert sure(1) < sure(4) < sure(16)


def test_a_path_leans_on_its_cell() -> None:
    """One weak path among good ones passes, and a strong one in a bad cell does not."""
    gains = [1.0, 1.0, 1.0, 0.05, 0.3, -0.4, -0.4, -0.4]
    passed = agreeing_rationales(gains, [0, 0, 0, 0, 1, 1, 1, 1], cells=2, least_share=0.25)
    assert passed.tolist() == [True, True, True, True, False, False, False, False]


def test_nothing_passes_where_nothing_gains_and_no_paths_are_no_error() -> None:
    assert not agreeing_rationales([-0.1, -0.2, 0.0], [0, 0, 1], cells=2, least_share=0.5).any()
    assert agreeing_rationales([], [], cells=2, least_share=0.5).tolist() == []


def test_a_larger_least_share_lets_fewer_pass() -> None:
    gains = [1.0, 1.0, 0.45, 0.45, 0.2, 0.2]
    cells = [0, 0, 1, 1, 2, 2]
    counts = [
        int(agreeing_rationales(gains, cells, cells=3, least_share=share).sum())
        for share in (0.0, 0.5, 1.0)
    ]
    assert counts == [6, 4, 2]


@pytest.mark.parametrize("share", [1.5, -0.1])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ParameterError, match="least_share"):
        agreeing_rationales([1.0], [0], cells=1, least_share=share)
