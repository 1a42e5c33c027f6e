"""Intervals, tests and decisions against exact formulas, SciPy and slow, obvious ways."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from bench_runs import made_up_run
from scipy.stats import beta, norm, permutation_test

from lada_lab.arms.analysis import (
    compare,
    estimate,
    groups_of,
    holm,
    resampled_sites,
    share_harmed,
    sign_flip_p,
)
from lada_lab.arms.runs import Run
from lada_secure.errors import ParameterError


def test_signs_are_flipped_in_all_ways() -> None:
    # 1, 2 and 3 add up to 6 in one pattern of eight, and to -6 in another.
    assert sign_flip_p(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert sign_flip_p(np.array([0.02, -0.02])) == 1.0
    assert sign_flip_p(np.zeros(4)) == 1.0
    assert sign_flip_p(np.zeros(0)) == 1.0
    # Ten times the same: no rounding may separate equal sums.
    assert sign_flip_p(np.full(10, 0.1)) == 2 / 2**10


@pytest.mark.parametrize("worlds", [5, 8, 12])
def test_the_exact_test_is_scipys(worlds: int) -> None:
    for seed in range(3):
        values = np.random.default_rng(seed).normal(0.03, 0.05, worlds)
        scipys = permutation_test(
            (values,), lambda x, axis: x.mean(axis=axis), permutation_type="samples",
            vectorized=True, n_resamples=np.inf,
        )  # fmt: skip
        assert sign_flip_p(values) == pytest.approx(scipys.pvalue)


def test_beyond_twenty_worlds_patterns_are_drawn_and_the_same_ones_again() -> None:
    values = np.random.default_rng(0).normal(0.02, 0.05, 24)
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    exact = (np.abs(sums) >= abs(values.sum()) - 1e-12).mean()
    # n = 100,000 draws; five standard errors, a false alarm in a million.
    assert sign_flip_p(values) == pytest.approx(
        exact, abs=5 * np.sqrt(exact * (1 - exact) / 1e5) + 1e-4
    )
    assert sign_flip_p(values) == sign_flip_p(values)


def closed_testing(p_values: list[float]) -> list[float]:
    """Bonferroni in every family of hypotheses that a hypothesis belongs to: what Holm shortens."""
    every = range(len(p_values))
    return [
        max(
            min(1.0, len(family) * min(p_values[at] for at in family))
            for size in range(1, len(p_values) + 1)
            for family in itertools.combinations(every, size)
            if one in family
        )
        for one in every
    ]


def test_holms_correction_is_closed_testing() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    rng = np.random.default_rng(1)
    for count in (1, 2, 4, 6):
        p_values = [float(p) for p in rng.beta(0.5, 3.0, count)]
        assert holm(p_values) == pytest.approx(closed_testing(p_values))


def levels(shape: tuple[int, int, int], spread: tuple[float, float, float]) -> np.ndarray:
    """Values with a spread between worlds, between a world's sites, and between a site's draws."""
    rng = np.random.default_rng(3)
    worlds, sites, _ = shape
    return (
        0.1
        + spread[0] * rng.normal(size=(worlds, 1, 1))
        + spread[1] * rng.normal(size=(worlds, sites, 1))
        + spread[2] * rng.normal(size=shape)
    )


@pytest.mark.parametrize(
    "spread", [(0.05, 0.0, 0.0), (0.0, 0.05, 0.0), (0.0, 0.0, 0.05), (0.05, 0.04, 0.03)]
)
def test_resamples_spread_as_the_formula_of_a_nested_bootstrap_says(
    spread: tuple[float, float, float],
) -> None:
    values = levels((12, 3, 4), spread)
    worlds, sites, draws = values.shape
    exact = (
        values.mean(axis=(1, 2)).var() / worlds
        + values.mean(axis=2).var(axis=1).mean() / (worlds * sites)
        + values.var(axis=2).mean() / (worlds * sites * draws)
    )
    means = resampled_sites(values).mean(axis=(1, 2))
    # n = 10,000: the variance of a normal mean is off by 7% less than once in a million.
    assert means.var() == pytest.approx(exact, rel=0.07)
    assert means.mean() == pytest.approx(values.mean(), abs=5 * np.sqrt(exact / len(means)))


def test_the_interval_of_many_worlds_is_the_normal_one() -> None:
    values = levels((200, 1, 1), (0.05, 0.0, 0.0))
    found = estimate(values)
    half = norm.ppf(0.975) * values.std() / np.sqrt(200)
    assert found.mean == values.mean()
    # A quantile of 10,000 resamples is off by 3% of the half-width or so.
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert estimate(values) == found


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Worlds, sites and draws all differ; n = 300 studies, 3 standard errors of 95%."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        values = (
            0.05 * rng.normal(size=(20, 1, 1))
            + 0.03 * rng.normal(size=(20, 3, 1))
            + 0.03 * rng.normal(size=(20, 3, 3))
        )
        means = resampled_sites(values, resamples=400).mean(axis=(1, 2))
        low, high = np.quantile(means, [0.025, 0.975])
        covered += low <= 0.0 <= high
    assert 0.91 < covered / 300 <= 1.0


def test_the_share_of_harmed_sites() -> None:
    values = np.zeros((10, 3, 2))
    values[0, 0] = [-0.05, -0.01]
    values[1, 0] = [-0.03, 0.01]
    # By their means over draws one site of thirty is more than two points below.
    found = share_harmed(values, harm=-0.02)
    assert found.mean == pytest.approx(1 / 30)
    assert found.low == 0.0
    assert 1 / 30 < found.high < 0.3


@pytest.mark.parametrize("worlds", [6, 20])
def test_where_no_site_is_harmed_the_limit_is_clopper_and_pearsons(worlds: int) -> None:
    exact = float(beta.ppf(0.975, 1, worlds))
    none = share_harmed(np.zeros((worlds, 3, 2)), harm=-0.02)
    assert (none.mean, none.low, none.high) == (0.0, 0.0, pytest.approx(exact))
    every = share_harmed(np.full((worlds, 3, 2), -0.1), harm=-0.02)
    assert (every.mean, every.low, every.high) == (1.0, pytest.approx(1.0 - exact), 1.0)


def study(lead: float, *, worlds: int = 8, rival: str = "random", draws: int = 2) -> list[Run]:
    """Ours ahead by `lead` but for a little noise that both share."""
    rng = np.random.default_rng(7)
    runs = []
    for seed in range(worlds):
        for draw in range(1, draws + 1):
            usual = 0.5 + 0.1 * rng.normal(size=3)
            mine = usual + lead + 0.005 * rng.normal(size=3)
            runs.append(made_up_run(rival, seed, usual.tolist(), draw=draw))
            runs.append(made_up_run("lada-secure", seed, mine.tolist(), draw=draw))
    return runs


@pytest.mark.parametrize(
    ("lead", "worlds", "superior", "no_harm"),
    [
        (0.05, 8, True, True),
        (0.02, 8, False, True),
        (-0.01, 8, False, True),
        (-0.04, 8, False, False),
        # Too few worlds to decide anything by.
        (0.05, 5, False, False),
    ],
)
def test_decisions_follow_the_interval(
    lead: float, worlds: int, superior: bool, no_harm: bool
) -> None:
    (group,) = groups_of(study(lead, worlds=worlds))
    (found,) = compare(group, ours="lada-secure", rivals=["random"], margin=0.03, harm=-0.02)
    assert found.difference.mean == pytest.approx(lead, abs=0.003)
    assert (found.superior, found.no_harm) == (superior, no_harm)
    # All worlds point the same way.
    assert found.p == pytest.approx(2 / 2**worlds)
    assert found.significant == (2 / 2**worlds <= 0.05)
    assert len(found.seeds) == worlds


def test_differences_are_paired_by_world_site_and_draw() -> None:
    runs = [
        made_up_run("random", 1, [0.10, 0.30]),
        made_up_run("random", 1, [0.20, 0.50], draw=2),
        made_up_run("lada-secure", 1, [0.15, 0.40], draw=2),
        made_up_run("lada-secure", 1, [0.30, 0.20]),
    ]
    (group,) = groups_of(runs)
    seeds, values = group.differences("lada-secure", "random")
    assert seeds == (1,)
    assert values[0] == pytest.approx(np.array([[0.20, -0.05], [-0.10, -0.10]]))
    (found,) = compare(group, ours="lada-secure", rivals=["random"], margin=0.03, harm=-0.02)
    assert found.worst is not None
    assert (found.worst.seed, found.worst.site) == (1, "site-b")
    assert found.worst.difference == pytest.approx(-0.1)
    assert found.by_site["site-a"].mean == pytest.approx(0.075)


def test_p_values_are_corrected_for_the_number_of_rivals() -> None:
    runs = [*study(0.05), *(run for run in study(0.05, rival="paper"))]
    runs = list({run.key: run for run in runs}.values())
    (group,) = groups_of(runs)
    found = compare(group, ours="lada-secure", rivals=["random", "paper"], margin=0.03, harm=-0.02)
    assert [one.p for one in found] == [pytest.approx(2 / 2**8)] * 2
    assert [one.adjusted for one in found] == [pytest.approx(4 / 2**8)] * 2


def test_a_world_that_lacks_a_draw_is_missing_and_said_to_be() -> None:
    runs = study(0.05)
    del runs[0]
    (group,) = groups_of(runs)
    assert group.missing == {"random": (0,), "lada-secure": ()}
    (found,) = compare(group, ours="lada-secure", rivals=["random"], margin=0.03, harm=-0.02)
    assert found.seeds == tuple(range(1, 8))


def test_cells_are_told_apart_by_epsilon_and_by_point() -> None:
    runs = [
        made_up_run("random", 1, [0.1]),
        made_up_run("random", 1, [0.2], epsilon=1.0),
        made_up_run("random", 1, [0.3], point=(("a", "1"),)),
    ]
    assert [(group.point, group.epsilon) for group in groups_of(runs)] == [
        ((), 8.0), ((), 1.0), ((("a", "1"),), 8.0),
    ]  # fmt: skip


def test_what_cannot_be_compared_is_refused() -> None:
    (group,) = groups_of(study(0.05))
    with pytest.raises(ParameterError, match="best: no runs at epsilon 8"):
        compare(group, ours="lada-secure", rivals=["best"], margin=0.03, harm=-0.02)
    with pytest.raises(ParameterError, match="the same sites"):
        groups_of([made_up_run("random", 1, [0.1]), made_up_run("random", 2, [0.1, 0.2])])
