"""Factors span a grid, and every value of the planned grid is one that a study can have."""

from __future__ import annotations

import pytest

from lada_lab.arms.arms import ARMS
from lada_lab.arms.grid import Factor, parse_factor, point_text, points_of
from lada_lab.arms.presets import bench_settings
from lada_lab.arms.study import study_plan
from lada_lab.worlds.chain_world import WorldSettings, build_data
from lada_secure.errors import ParameterError
from lada_secure.privacy.release.units import bound_units

# As docs/results/protocol.md has it.
PLANNED = (
    "world.marked=0,0.25,0.5",
    "world.harmful=0,0.15,0.3,0.45",
    "allocation.clusters=4,8,16",
    "world.private=160,300,1000",
    "world.rationales=0.2,0.5",
)


def test_a_factor_is_a_name_and_values_as_json() -> None:
    assert parse_factor("world.marked=0, 0.50") == Factor(name="world.marked", levels=("0", "0.5"))
    named = parse_factor('allocation.strategy="guided","lada"')
    assert named.levels == ('"guided"', '"lada"')
    nested = parse_factor("guide.trials=null,[1,2]")
    assert nested.levels == ("null", "[1, 2]")


@pytest.mark.parametrize(
    "text", ["world.marked", "world.marked=", "=1,2", "a=1", "a=1,1.0", "a=x,y", "a=1,2]"]
)
def test_a_factor_of_less_than_two_values_or_no_json_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="--factor"):
        parse_factor(text)


def test_points_are_all_combinations() -> None:
    assert points_of([]) == [()]
    points = points_of([parse_factor("a=1,2"), parse_factor('b="x","y","z"')])
    assert len(set(points)) == 6
    assert points[1] == (("a", "1"), ("b", '"y"'))
    assert point_text(points[1]) == 'a=1, b="y"'


@pytest.mark.parametrize(
    ("factors", "message"),
    [(["a=1,2", "a=3,4"], "each name once"), ([f"f{at}=1,2,3" for at in range(7)], "at most 1000")],
)
def test_a_grid_that_repeats_or_explodes_is_refused(factors: list[str], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        points_of([parse_factor(text) for text in factors])


def test_every_point_of_the_planned_grid_gives_a_study_its_plan() -> None:
    points = points_of([parse_factor(text) for text in PLANNED])
    assert len(points) == 216
    ends = {name: set() for name, _ in points[0]}
    for point in points:
        for name, level in point:
            ends[name].add(level)
        settings = bench_settings(
            "tiny", harmful=0.3, held_out=10, changes=[f"{name}={level}" for name, level in point]
        )
        wanted = dict(point)
        assert isinstance(settings.world, WorldSettings)
        assert settings.world.marked == float(wanted["world.marked"])
        assert settings.world.harmful == float(wanted["world.harmful"])
        assert settings.world.rationales == float(wanted["world.rationales"])
        assert settings.world.private == int(wanted["world.private"])
        assert settings.plan.allocation.clusters == int(wanted["allocation.clusters"])
    assert [len(found) for found in ends.values()] == [3, 4, 3, 3, 2]


@pytest.mark.parametrize("private", [160, 300])
def test_a_site_with_few_records_puts_all_its_people_into_every_step(private: int) -> None:
    settings = bench_settings(
        "tiny", harmful=0.3, held_out=10, changes=[f"world.private={private}"]
    )
    assert isinstance(settings.world, WorldSettings)
    data = build_data(settings.world, seed=1)
    units = len(bound_units(data.sites[0].train, max_records_per_unit=4))
    plan = study_plan(
        settings, ARMS["random"].changes, data, clusters=8, units=units, epsilon=8.0, seed=1
    )
    assert units < 200
    assert plan.training.sampling_probability == 1.0
