"""What a part is worth: leave-one-out arms, and main effects of a full factorial."""

from __future__ import annotations

import itertools

import pytest
from bench_runs import made_up_run

from lada_lab.arms.ablation import PARTS_ADDED, PARTS_LEFT_OUT, main_effects, parts_left_out
from lada_lab.arms.arms import ARMS
from lada_lab.arms.runs import Run


def test_every_arm_with_a_part_less_is_an_arm() -> None:
    assert set(PARTS_LEFT_OUT) | set(PARTS_ADDED) <= set(ARMS)


def test_a_part_is_worth_what_the_method_loses_without_it() -> None:
    runs = []
    for seed in range(6):
        usual = 0.6 + 0.02 * seed
        runs += [
            made_up_run("lada-secure", seed, [usual, usual], cost=(8.0, 50.0)),
            made_up_run("no-valuation", seed, [usual - 0.08, usual - 0.12], cost=(7.5, 40.0)),
            made_up_run("with-contrast", seed, [usual + 0.01, usual + 0.01], cost=(8.0, 54.0)),
        ]
    # Whatever another epsilon shows stays there.
    runs.append(made_up_run("no-valuation", 0, [0.1, 0.1], epsilon=1.0))
    found = {worth.part: worth for _, _, worth in parts_left_out(runs, ours="lada-secure")}
    assert set(found) == {"data valuation", "contrastive term"}
    valued = found["data valuation"]
    assert valued.accuracy.mean == pytest.approx(0.10)
    assert valued.accuracy.low < 0.10 < valued.accuracy.high
    assert (valued.seconds, valued.epsilon, valued.worlds) == (
        pytest.approx(10.0), pytest.approx(0.5), 6,
    )  # fmt: skip
    assert found["contrastive term"].accuracy.mean == pytest.approx(0.01)
    assert found["contrastive term"].seconds == pytest.approx(4.0)


def factorial(*, interaction: float = 0.0) -> list[Run]:
    """Marks cost 0.2 of what there is at 1, half of it at 0.5; more clusters bring 0.03."""
    runs = []
    for seed, marked, clusters in itertools.product(range(6), (0.0, 0.5, 1.0), (4, 8)):
        share = 0.6 + 0.01 * seed - 0.2 * marked + 0.03 * (clusters == 8)
        share += interaction * (marked == 1.0 and clusters == 8)
        point = (("world.marked", f"{marked:g}"), ("allocation.clusters", str(clusters)))
        cost = (8.0 - marked, 40.0 + clusters)
        runs.append(made_up_run("lada-secure", seed, [share, share], point=point, cost=cost))
    return runs


def test_main_effects_are_means_over_all_other_factors() -> None:
    found = {effect.part: effect for _, effect in main_effects(factorial(), arm="lada-secure")}
    assert {name: pytest.approx(one.accuracy.mean) for name, one in found.items()} == {
        "world.marked: 0.5 for 0": -0.1,
        "world.marked: 1 for 0": -0.2,
        "allocation.clusters: 8 for 4": 0.03,
    }
    assert found["allocation.clusters: 8 for 4"].seconds == pytest.approx(4.0)
    assert found["world.marked: 1 for 0"].epsilon == pytest.approx(-1.0)
    mixed = {
        effect.part: effect.accuracy.mean
        for _, effect in main_effects(factorial(interaction=0.06), arm="lada-secure")
    }
    # Half of the points at mark 1 and a third of those with eight clusters have it.
    assert mixed["world.marked: 1 for 0"] == pytest.approx(-0.17)
    assert mixed["allocation.clusters: 8 for 4"] == pytest.approx(0.05)


def test_a_world_without_all_combinations_does_not_count_and_half_a_grid_says_nothing() -> None:
    runs = factorial()
    found = main_effects(runs[:-1], arm="lada-secure")
    assert {effect.worlds for _, effect in found} == {5}
    lacking = [run for run in runs if dict(run.point) != dict(runs[-1].point)]
    assert main_effects(lacking, arm="lada-secure") == []
    assert main_effects([run for run in runs if run.point == runs[0].point], arm="x") == []
