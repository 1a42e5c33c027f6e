"""The paper's data filter: a start from clusters, then the samples of the largest forecast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lada_lab.arms.arms import ARMS
from lada_lab.arms.paper_filter import PairFilter, PaperTransfer, pair_features, topic_features
from lada_lab.arms.simulation import Laboratory
from lada_lab.arms.study import changed_plan
from lada_secure.arrays import BoolArray, FloatArray
from lada_secure.method.plan import split_pool

SAMPLES = 40
# Four clusters of ten samples, side by side.
CLUSTERS = np.repeat(np.arange(4), 10)
ALL = np.ones(SAMPLES, dtype=np.bool_)
# What the one feature says: half of each cluster is one kind of sample, half another.
KIND = np.tile([0.0] * 5 + [1.0] * 5, 4)[:, None]


def chosen(
    found: PairFilter, available: BoolArray = ALL, *, round_id: int = 0, quota: int = 8,
    shares: tuple[float, ...] = (2.0, 1.0, 1.0, 0.0),
) -> list[int]:  # fmt: skip
    picked = found.choose(
        KIND,
        available,
        clusters=CLUSTERS,
        shares=np.array(shares),
        quota=quota,
        round_id=round_id,
    )
    return [int(at) for at in np.flatnonzero(picked)]


def test_the_first_round_starts_from_clusters_by_their_shares() -> None:
    first = chosen(PairFilter(alpha=1.0, seed=3))
    assert np.bincount(CLUSTERS[first], minlength=4).tolist() == [4, 2, 2, 0]
    assert chosen(PairFilter(alpha=1.0, seed=3)) == first
    assert chosen(PairFilter(alpha=1.0, seed=4)) != first


def test_later_rounds_choose_what_was_like_the_rewarded_ones() -> None:
    found = PairFilter(alpha=0.0, seed=3)
    first = chosen(found, quota=16, shares=(1.0, 1.0, 1.0, 1.0))
    # Training lowers samples of the first kind and raises those of the second.
    found.learn(first, 0.3 * KIND[first, 0] - 0.1, round_id=0)
    left = ALL.copy()
    left[first] = False
    second = chosen(found, left, round_id=1)
    assert set(second).isdisjoint(first)
    assert KIND[second].all()


def test_a_round_in_which_nothing_was_learned_from_starts_again_from_clusters() -> None:
    found = PairFilter(alpha=1.0, seed=3)
    chosen(found)
    found.learn([], np.zeros(0), round_id=0)
    assert np.bincount(CLUSTERS[chosen(found, round_id=1)], minlength=4).tolist() == [4, 2, 2, 0]


def test_exploration_takes_part_by_alpha_alone() -> None:
    # What was seen says nothing of kinds; what differs is how far off forecasts were.
    def filter_of(alpha: float) -> FloatArray:
        found = PairFilter(alpha=alpha, seed=3)
        rng = np.random.default_rng(7)
        for round_id in range(3):
            features = rng.random((SAMPLES, 2))
            found.choose(
                features, ALL, clusters=CLUSTERS, shares=np.ones(4), quota=8, round_id=round_id
            )
            found.learn(list(range(8)), 0.2 * rng.random(8), round_id=round_id)
        features = rng.random((SAMPLES, 2))
        return found.choose(
            features, ALL, clusters=CLUSTERS, shares=np.ones(4), quota=8, round_id=3
        ).astype(float)

    assert filter_of(0.0).sum() == filter_of(50.0).sum() == 8
    assert not np.array_equal(filter_of(0.0), filter_of(50.0))


def test_rewards_are_remembered_with_the_features_of_when_samples_were_chosen() -> None:
    found = PairFilter(alpha=1.0, seed=3)
    first = chosen(found)
    found.learn(first, np.full(len(first), 0.1), round_id=0)
    (observed,) = found.history.rounds
    np.testing.assert_array_equal(observed.features, KIND[first])
    np.testing.assert_array_equal(observed.cells, first)
    np.testing.assert_allclose(observed.rewards, 0.1)


def test_a_pairs_features_are_both_models_and_the_gap_between_them() -> None:
    found = pair_features(
        llm=np.array([0.0, np.log(2.0), np.inf]),
        slm=np.array([np.log(4.0), 0.0, np.inf]),
        topics=np.array([[0.5], [-0.5], [0.0]]),
    )
    expected = [[1.0, 0.25, 0.75, 0.5], [0.5, 1.0, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_topics_are_the_main_directions_of_the_embeddings() -> None:
    rng = np.random.default_rng(1)
    points = rng.standard_normal((30, 64)) * np.linspace(5.0, 0.01, 64)
    found = topic_features(points)
    assert found.shape == (30, 16)
    assert np.abs(found).max() == 1.0
    # The first one varies most, and one point is no direction.
    assert (np.diff(found.var(axis=0)) <= 0).all()
    np.testing.assert_array_equal(topic_features(points[:1]), 0.0)


def test_the_llms_filter_asks_each_site_within_its_part_of_the_budget(
    laboratory: Laboratory,
) -> None:
    arm = ARMS["paper-transfer"]
    study = laboratory.study(arm, laboratory.plan_of(arm, 8.0))
    assert isinstance(study.inquiries, PaperTransfer)
    assert study.plan.uplink is not None
    assert study.plan.uplink.first_round == 0
    sites = {site.name: (site.context, site.state) for site in study.sites}
    asked = study.inquiries.ask(sites, 0)
    candidates = split_pool(study.plan).candidates
    assert all(len(one) <= study.plan.uplink.budget // 3 for one in asked.values())
    assert all(set(one) <= set(candidates) for one in asked.values())
    name, indices = next((name, one) for name, one in asked.items() if one)
    written = {name: {indices[0]: "4f7"}}
    study.inquiries.before(written)
    study.inquiries.after(written, 0)
    (observed,) = study.inquiries._filters[name].history.rounds
    # The LLM has not changed.
    assert observed.rewards.tolist() == [0.0]
    assert observed.cells.tolist() == [indices[0]]
    assert indices[0] not in study.inquiries.ask(sites, 1)[name]


@pytest.mark.parametrize(
    ("name", "alpha", "weight"),
    [("paper", 1.0, 0.1), ("random", 0.1, 0.0)],
)
def test_alpha_and_lambda_are_the_arms_own_until_a_caller_sets_them(
    name: str, alpha: float, weight: float, laboratory: Laboratory
) -> None:
    plan = laboratory.plan_of(ARMS[name], 8.0)
    assert plan.allocation.exploration_weight == alpha
    assert plan.distillation.contrastive_weight == weight
    set_by_caller = {"distillation.contrastive_weight": 0.3}
    settings = replace(
        laboratory.settings,
        plan=changed_plan(laboratory.settings.plan, set_by_caller),
        chosen=frozenset(set_by_caller),
    )
    found = replace(laboratory, settings=settings).plan_of(ARMS[name], 8.0)
    assert found.distillation.contrastive_weight == 0.3
    assert found.allocation.exploration_weight == alpha


def test_a_presets_tuning_is_one_arms_own_and_gives_way_to_the_caller(
    laboratory: Laboratory,
) -> None:
    tuned = {"noise_rate": 1e-5, "distillation.contrastive_weight": 0.03}
    both = {**laboratory.settings.tuned, "paper": tuned}
    found = replace(laboratory, settings=replace(laboratory.settings, tuned=both))
    before, plan = (one.plan_of(ARMS["paper"], 8.0) for one in (laboratory, found))
    assert plan.distillation.contrastive_weight == 0.03
    ratio = plan.distillation.learning_rate / before.distillation.learning_rate
    assert ratio == pytest.approx(1e-5 / laboratory.settings.noise_rate)
    assert found.plan_of(ARMS["random"], 8.0) == laboratory.plan_of(ARMS["random"], 8.0)
    by_caller = replace(found.settings, chosen=frozenset(tuned))
    plan = replace(found, settings=by_caller).plan_of(ARMS["paper"], 8.0)
    assert plan.distillation.learning_rate == before.distillation.learning_rate
    assert plan.distillation.contrastive_weight == 0.0
