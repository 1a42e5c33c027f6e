"""What a site asks for: quotas by mass at first, by utility later, nothing twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from protocol_world import GUIDE, make_plan

from lada_secure.allocation.data_valuation import ClusterValuation
from lada_secure.allocation.gap import SlmKnowledge
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.allocation.statistics_parameters import StatisticsParameters
from lada_secure.allocation.strategies import STRATEGIES
from lada_secure.method.mechanisms import cell_grid
from lada_secure.method.plan import MethodPlan, ValuationPlan
from lada_secure.method.site_allocation import choose_cells, pick_samples
from lada_secure.method.site_state import KnownRationale, SiteState

CLUSTERS = np.repeat(np.arange(2, dtype=np.int64), 20)
PARAMETERS = StatisticsParameters(
    clusters=2, loss_clip=4.0, noise_multiplier=8.0, max_units=5_000, scale=16
)
# Equal masses, and the same loss in both clusters.
EQUAL = NoisedStatistics(
    vector=np.array([8_000, 8_000, 1_400, 1_400], dtype=np.int64), parameters=PARAMETERS
)
LOPSIDED = NoisedStatistics(
    vector=np.array([15_000, 1_000, 2_600, 200], dtype=np.int64), parameters=PARAMETERS
)
TWO_TO_ONE = NoisedStatistics(
    vector=np.array([10_000, 5_000, 1_800, 900], dtype=np.int64), parameters=PARAMETERS
)
ONE_CLUSTER = NoisedStatistics(
    vector=np.array([16_000, 0, 2_800, 0], dtype=np.int64), parameters=PARAMETERS
)


# Of forty samples; every other one is known.
KNOWN = SlmKnowledge(
    right=np.arange(40) % 2 == 0, confidence=np.where(np.arange(40) % 2 == 0, 0.75, 0.0)
)


def plan(
    strategy: str, *, quota: int = 12, trials: ValuationPlan | None = None, **allocation: object
) -> MethodPlan:
    base = make_plan()
    return base.model_copy(
        update={
            "allocation": base.allocation.model_copy(
                update={
                    "strategy": strategy,
                    "clusters": 2,
                    "difficulty_bins": 1,
                    "quota": quota,
                    **allocation,
                }
            ),
            "guide": GUIDE.model_copy(update={"trials": trials}),
        }
    )


def picks(
    study: MethodPlan,
    state: SiteState,
    noised: NoisedStatistics = EQUAL,
    *,
    round_id: int = 1,
    scores: np.ndarray | None = None,
    lacking: tuple[float, float] = (0.5, 0.5),
) -> tuple[int, ...]:
    return pick_samples(
        study,
        state,
        noised,
        choose_cells(study, state, noised, lacking=np.array(lacking)).utilities,
        np.full(len(CLUSTERS), 0.5) if scores is None else scores,
        pool_clusters=CLUSTERS,
        round_id=round_id,
        slm=KNOWN,
    )


def counts(found: tuple[int, ...]) -> list[int]:
    return np.bincount(CLUSTERS[list(found)], minlength=2).tolist()


def judged(gains: dict[int, float], valued: dict[int, float] | None = None) -> SiteState:
    """Eight rationales a cell with so much gain; and valuations by cluster, in clips."""
    return SiteState(
        rationales=tuple(
            KnownRationale(pool_index=20 * cell + at, cell=cell, text="9", p=0.5, gain=gain)
            for cell, gain in gains.items()
            for at in range(8)
        ),
        valuations=tuple(
            ClusterValuation(cluster=cluster, paths=8, gain=gain, std=0.1)
            for cluster, gain in (valued or {}).items()
        ),
    )


def trials(least_gain: float = -1.0) -> ValuationPlan:
    return ValuationPlan(noise_multiplier=8.0, gain_clip=0.5, least_gain=least_gain)


def test_without_judged_rationales_equal_masses_share_the_quota() -> None:
    assert counts(picks(plan("guided"), SiteState())) == [6, 6]


@pytest.mark.parametrize("good", [0, 1])
def test_a_cluster_that_contradicts_the_dp_reference_model_gets_next_to_nothing(good: int) -> None:
    found = counts(picks(plan("guided"), judged({good: 1.0, 1 - good: -1.0})))
    assert found[good] >= 11


@pytest.mark.parametrize("strategy", ["guided", "valuation"])
@pytest.mark.parametrize("good", [0, 1])
def test_data_valuation_overrules_the_dp_reference_model(good: int, strategy: str) -> None:
    state = judged({good: -1.0, 1 - good: 1.0}, {good: 0.5, 1 - good: -1.0})
    assert counts(picks(plan(strategy, trials=trials()), state))[good] >= 11


@pytest.mark.parametrize("least_gain", [-1.0, 0.0])
def test_a_cluster_below_the_least_gain_is_not_asked_for_though_no_other_was_valued(
    least_gain: float,
) -> None:
    study = plan("guided", trials=trials(least_gain))
    found = counts(picks(study, judged({}, {0: -0.6})))
    assert found[1] > 0
    assert (found[0] > found[1]) is (least_gain == -1.0)
    assert found[0] < 2 or least_gain == -1.0


def test_judgements_count_for_the_strategies_that_read_them_alone() -> None:
    assert counts(picks(plan("domain"), judged({0: 1.0, 1: -1.0}))) == [6, 6]


def test_the_first_round_follows_the_masses_but_not_where_samples_are_drawn_at_random() -> None:
    assert counts(picks(plan("lada"), SiteState(), LOPSIDED, round_id=0)) == [11, 1]
    at_random = counts(picks(plan("random"), SiteState(), LOPSIDED, round_id=0))
    assert sum(at_random) == 12
    assert min(at_random) >= 2


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_nothing_is_asked_for_twice_and_the_pool_can_run_out(strategy: str) -> None:
    study, state = plan(strategy, quota=25), SiteState()
    seen: set[int] = set()
    for round_id in range(3):
        found = picks(study, state, round_id=round_id)
        assert not seen & set(found)
        seen |= set(found)
        state = replace(state.with_picks(round_id, found), trained=(*state.trained, round_id))
    assert len(seen) == 40
    assert picks(study, state, round_id=3) == ()


@pytest.mark.parametrize("value", [None, "gap", "gain"])
@pytest.mark.parametrize("strategy", ["lada", "domain"])
def test_no_rule_asks_for_anything_twice_or_for_more_than_the_quota(
    strategy: str, value: str | None
) -> None:
    study = plan(strategy, quota=7, sample_value=value)
    state, seen = SiteState(), set[int]()
    for round_id in range(7):
        found = picks(study, state, round_id=round_id)
        assert len(found) <= 7
        assert not seen & set(found)
        seen |= set(found)
        state = replace(state.with_picks(round_id, found), trained=(*state.trained, round_id))
    # What is known is worth nothing to the gap.
    assert len(seen) == (20 if value == "gap" else 40)
    assert sum(bool(KNOWN.right[index]) for index in seen) == (0 if value == "gap" else 20)


def test_without_a_rule_what_the_slm_knows_decides_nothing() -> None:
    assert picks(plan("domain"), SiteState()) == picks(
        plan("domain", sample_value="score"), SiteState()
    )
    assert picks(plan("domain", sample_value="gap"), SiteState()) != picks(
        plan("domain"), SiteState()
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # Of a quota of 6 the first cluster has 4. Scores fall from sample to sample, and of the
        # twenty of a cluster the even ones are known.
        pytest.param(None, [0, 1, 2, 3, 20, 21], id="the best scores"),
        pytest.param("gap", [1, 3, 5, 7, 21, 23], id="the best of what it gets wrong"),
        # A known one is worth a quarter of its score.
        pytest.param("gain", [1, 3, 5, 7, 21, 23], id="the largest expected gain"),
    ],
)
def test_picks_by_hand(value: str | None, expected: list[int]) -> None:
    scores = np.tile(np.linspace(1.0, 0.5, 20), 2)
    study = plan("domain", quota=6, sample_value=value)
    assert list(picks(study, SiteState(), TWO_TO_ONE, scores=scores)) == expected


@pytest.mark.parametrize("strategy", ["gain", "valued_gain"])
def test_gain_asks_where_the_slm_lacks_most_from_the_first_round_on(strategy: str) -> None:
    study = plan(strategy)
    found = picks(study, SiteState(), round_id=0, lacking=(0.75, 0.25))
    assert counts(found) == [9, 3]
    # What it lacks of a topic without records is nothing to this site.
    assert counts(picks(study, SiteState(), LOPSIDED, round_id=0, lacking=(0.0, 1.0))) == [0, 12]
    assert counts(picks(study, SiteState(), ONE_CLUSTER, round_id=0, lacking=(0.1, 1.0))) == [12, 0]
    assert counts(picks(plan("domain"), SiteState(), round_id=0, lacking=(0.75, 0.25))) == [6, 6]


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"random"}))
def test_records_in_one_cluster_leave_the_other_out(strategy: str) -> None:
    assert counts(picks(plan(strategy), SiteState(), ONE_CLUSTER, round_id=0)) == [12, 0]


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"random"}))
def test_when_the_best_topic_is_used_up_the_quota_goes_to_the_next(strategy: str) -> None:
    state = SiteState(picks={0: tuple(range(20))}, trained=(0,))
    scores = np.where(CLUSTERS == 0, 1.0, 0.0625)
    assert counts(picks(plan(strategy), state, LOPSIDED, scores=scores)) == [0, 12]
    # But not to one that is worth nothing.
    assert picks(plan(strategy), state, LOPSIDED, scores=np.where(CLUSTERS == 0, 1.0, 0.0)) == ()


def test_what_decryption_leaves_decides_no_tie() -> None:
    study = plan("lada")
    exact = picks(study, SiteState())
    noise = np.random.default_rng(5).uniform(-2e-5, 2e-5, len(CLUSTERS))
    assert picks(study, SiteState(), scores=np.full(len(CLUSTERS), 0.5) + noise) == exact


def test_an_unseen_cell_has_the_utility_of_its_mass() -> None:
    study = plan("valuation")
    found = choose_cells(study, SiteState(), LOPSIDED)
    assert len(found.utilities) == cell_grid(study).cells
    assert found.utilities[0] == 1.0
    assert 0.0 < found.utilities[1] < 0.1


def test_picks_of_a_round_that_the_site_was_left_out_of_change_nothing_later() -> None:
    # Nobody has checked the scores that they follow from: those of a coordinator that sends one
    # site a ladder and takes it out of the sum would be read from what the site no longer wants.
    state = SiteState(picks={0: (1, 4), 1: (4, 9)}, trained=(1,))
    assert state.picked_before(2) == {4, 9}
    assert state.picked_before(1) == frozenset()
