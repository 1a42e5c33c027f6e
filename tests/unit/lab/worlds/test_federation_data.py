"""The one door to both presets."""

from __future__ import annotations

import numpy as np
import pytest

from lada_lab.worlds.chain_world import build_data
from lada_lab.worlds.federation import CHAINS, build_federation
from lada_lab.worlds.sites import shuffled, unit_names
from lada_secure.errors import ParameterError


@pytest.mark.parametrize("preset", ["tiny", "demo", "chains"])
@pytest.mark.parametrize("sites", [0, 2, 13])
def test_a_number_of_sites_out_of_range_is_refused(preset: str, sites: int) -> None:
    with pytest.raises(ParameterError, match="expected 3 to 12"):
        build_federation(preset, sites=sites, seed=0)  # type: ignore[arg-type]


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ParameterError, match="seed: expected 0 or more, got -1"):
        build_federation("tiny", sites=3, seed=-1)


def test_an_unknown_world_is_refused() -> None:
    with pytest.raises(ParameterError, match="expected demo, tiny or chains, got 'huge'"):
        build_federation("huge", sites=3, seed=0)  # type: ignore[arg-type]


def test_units_cover_all_records_in_order() -> None:
    names = unit_names(np.random.default_rng(0), 500, prefix="patient")
    assert len(names) == 500
    assert names == sorted(names)
    sizes = [names.count(name) for name in dict.fromkeys(names)][:-1]
    assert set(sizes) == {1, 2, 3, 4}


def test_shuffling_does_not_depend_on_the_order_that_items_come_in() -> None:
    items = [f"item {number}" for number in range(30)]
    first = shuffled(np.random.default_rng(5), items)
    assert first == shuffled(np.random.default_rng(5), items[::-1])
    assert sorted(first) == sorted(items)
    assert first != sorted(items)


def test_the_mocks_chains_are_the_benchmarks() -> None:
    ours = build_federation("chains", sites=3, seed=9)
    bench = build_data(CHAINS, seed=9)
    assert ours.pool == bench.pool
    assert list(ours.sites) == [site.name for site in bench.sites]
    for site in bench.sites:
        assert ours.sites[site.name].train == site.train
        assert ours.sites[site.name].held_out == site.held_out
