"""Draws within a quota: by hand where one can, by properties where not; frequencies elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lada_secure.allocation.draws import (
    Eligible,
    SampleRule,
    answer_strata,
    draw_samples,
    soft_order,
    stratum_quotas,
)
from lada_secure.allocation.gap import SlmKnowledge
from lada_secure.allocation.selection import pick_by_cluster
from lada_secure.errors import ParameterError

# Twelve samples of two clusters; a third of each have one answer, the others another.
GROUPS = np.repeat(np.arange(2, dtype=np.int64), 6)
STRATA = np.tile(np.array([1, 1, 2, 2, 2, 2], dtype=np.int64), 2)
SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4] * 2)
# It knows the two best samples of each cluster, and wavers on the third.
SLM = SlmKnowledge(
    right=np.array([True, True, False, False, False, False] * 2),
    confidence=np.array([1.0, 0.75, 0.5, 0.0, 0.0, 0.0] * 2),
)


def eligible(**changes: Any) -> Eligible:
    fields: dict[str, Any] = {
        "passing": np.ones(12, dtype=np.bool_),
        "groups": GROUPS,
        "shares": np.array([2.0, 1.0]),
        "strata": STRATA,
        "ties": 0,
        "seed": (0, 1),
    }
    return Eligible(**{**fields, **changes})


def drawn(rule: SampleRule, quota: int, **changes: Any) -> list[int]:
    found = draw_samples(rule, SCORES, eligible(**changes), quota=quota, slm=SLM)
    return np.flatnonzero(found).tolist()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # The quota of 6 is split 4 to 2.
        pytest.param({}, [0, 1, 2, 3, 6, 7], id="the best scores"),
        pytest.param({"value": "gap"}, [2, 3, 4, 5, 8, 9], id="the best of what it gets wrong"),
        # Values 0, 0.2, 0.35, 0.6, 0.5, 0.4.
        pytest.param({"value": "gain"}, [2, 3, 4, 5, 9, 10], id="the largest expected gain"),
        # Values 0, 0.6, 0.7, and 0 where it is sure or hopeless.
        pytest.param({"value": "band"}, [1, 2, 7, 8], id="in two minds, and no others"),
        # Three of each, split 2 to 1.
        pytest.param(
            {"value": "gap", "known_share": 0.5}, [0, 1, 2, 3, 6, 8], id="half of it known"
        ),
    ],
)
def test_picks_by_hand(rule: dict[str, Any], expected: list[int]) -> None:
    assert drawn(SampleRule(**rule), 6) == expected


def test_a_known_share_is_no_more_than_there_is() -> None:
    # Of ten, all are to be known; four are, and none of the rest is worth anything to the gap.
    assert drawn(SampleRule(value="gap", known_share=1.0), 10) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    only_known = np.array([True, True, False, False, False, False] * 2)
    assert drawn(SampleRule(value="gap", known_share=0.0), 10, passing=only_known) == []
    assert drawn(SampleRule(value="gap", known_share=0.5), 8, passing=only_known) == [0, 1, 6, 7]


def test_what_the_rule_reads_must_be_there() -> None:
    assert not SampleRule(draw="soft").reads_slm
    for rule in (SampleRule(value="gap"), SampleRule(known_share=0.2)):
        assert rule.reads_slm
        with pytest.raises(ParameterError, match="answers"):
            draw_samples(rule, SCORES, eligible(), quota=6)
    with pytest.raises(ParameterError, match="known_share"):
        SampleRule(known_share=1.1)


@pytest.mark.parametrize("value", ["score", "gap"])
def test_strata_have_their_share_of_what_passes_though_value_prefers_others(value: Any) -> None:
    one_cluster = {"groups": np.zeros(12, dtype=np.int64), "shares": np.ones(1)}
    strata = np.tile(np.array([1, 2, 2, 1, 2, 2], dtype=np.int64), 2)
    rule = SampleRule(value=value, draw="stratified")
    found = drawn(rule, 6, strata=strata, **one_cluster)
    assert np.bincount(strata[found], minlength=3).tolist() == [0, 2, 4]
    # Within a stratum the best come first: of answer 1, by gap, those that it gets wrong.
    wanted = {"score": {0, 6}, "gap": {3, 9}}[value]
    assert set(found) & {0, 3, 6, 9} == wanted
    # Without strata the score would take answers as they come.
    assert drawn(SampleRule(draw="top"), 6, strata=strata, **one_cluster) == [0, 1, 2, 6, 7, 8]


def test_a_stratum_that_has_nothing_of_worth_leaves_its_share_to_the_others() -> None:
    # All of answer 1 is known.
    found = drawn(SampleRule(value="gap", draw="stratified"), 6)
    assert found == [2, 3, 4, 5, 8, 9]


def test_answers_that_occur_once_share_a_stratum() -> None:
    assert answer_strata(["b", "a", "b", "c", "a", "d", "b"]).tolist() == [1, 2, 1, 0, 2, 0, 1]
    assert answer_strata(["x", "y", "z"]).tolist() == [0, 0, 0]
    assert answer_strata([]).tolist() == []


@pytest.mark.parametrize(
    ("shares", "quota", "available", "expected"),
    [
        pytest.param([3, 1], 8, [50, 50], [6, 2], id="proportional"),
        pytest.param([9, 1], 10, [4, 50], [4, 6], id="a full stratum passes its part on"),
        pytest.param([1, 0], 10, [4, 50], [4, 6], id="beyond all shares any stratum serves"),
        pytest.param([0, 0], 4, [50, 50], [2, 2], id="no share anywhere means equal parts"),
        pytest.param([1, 1], 100, [3, 4], [3, 4], id="fewer samples than the quota"),
        pytest.param([1.0], 5, [9], [5], id="one stratum takes all"),
        pytest.param([1, 1], 0, [3, 4], [0, 0], id="no quota"),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_quotas_of_strata(
    shares: list[float], quota: int, available: list[int], expected: list[int], seed: int
) -> None:
    assert stratum_quotas(shares, quota, available=available, seed=[seed]).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(
    shares=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    quota=st.integers(0, 30),
    seed=st.integers(0, 2**32),
)
def test_a_stratum_gets_its_exact_part_rounded_up_or_down(
    shares: list[int], quota: int, seed: int
) -> None:
    found = stratum_quotas(shares, quota, available=[100] * len(shares), seed=[seed])
    parts = np.array(shares) if any(shares) else np.ones(len(shares))
    exact = quota * parts / parts.sum()
    assert found.sum() == quota
    assert (np.abs(found - exact) < 1.0 + 1e-9).all()


def test_small_quotas_do_not_go_to_the_same_answers_always() -> None:
    # Ten answers, a quota of four: by largest remainders four of them would get all of it.
    shares = np.full(10, 7)
    total = sum(stratum_quotas(shares, 4, available=[100] * 10, seed=[seed]) for seed in range(200))
    assert isinstance(total, np.ndarray)
    assert total.min() > 0
    assert total.sum() == 800


def test_what_is_worth_nothing_comes_last_in_a_race() -> None:
    order = soft_order([0.0, 1.0, 0.0, 1e-9], seed=[3])
    assert np.isneginf(order[[0, 2]]).all()
    assert np.isfinite(order[[1, 3]]).all()
    with pytest.raises(ParameterError, match="values"):
        soft_order([0.5, -0.1], seed=[3])


def test_lots_are_the_same_for_a_seed_and_others_for_another_round() -> None:
    rule = SampleRule(value="gain", draw="soft")
    first = drawn(rule, 4)
    assert drawn(rule, 4) == first
    rounds = {tuple(drawn(rule, 4, seed=(0, number))) for number in range(20)}
    assert len(rounds) > 5


CASES = st.lists(
    st.tuples(
        st.integers(0, 1024).map(lambda steps: steps / 1024),
        st.floats(0.0, 1.0),
        st.booleans(),
        st.booleans(),
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=60,
)
RULES = st.builds(
    SampleRule,
    value=st.sampled_from(["score", "band", "gap", "gain"]),
    draw=st.sampled_from(["top", "soft", "stratified"]),
    known_share=st.floats(0.0, 1.0),
)


@settings(max_examples=100, deadline=None)
@given(rows=CASES, rule=RULES, quota=st.integers(0, 40), seed=st.integers(0, 1000))
def test_whatever_the_rule_a_draw_keeps_to_quota_candidates_and_worth(
    rows: list[tuple[float, float, bool, bool, int, int]],
    rule: SampleRule,
    quota: int,
    seed: int,
) -> None:
    scores, confidence, right, passing, groups, strata = (
        np.array([row[at] for row in rows]) for at in range(6)
    )
    slm = SlmKnowledge(right=right.astype(np.bool_), confidence=confidence)
    where = Eligible(
        passing=passing.astype(np.bool_),
        groups=groups.astype(np.int64),
        shares=np.array([3.0, 1.0, 0.0, 1.0]),
        strata=strata.astype(np.int64),
        ties=seed,
        seed=(seed, 0),
    )
    found = draw_samples(rule, scores, where, quota=quota, slm=slm)
    assert found.sum() <= quota
    assert not (found & ~where.passing).any()
    kept = round(rule.known_share * quota)
    known = where.passing & slm.right
    # As many known ones as were promised, and no other sample that is worth nothing.
    assert (found & known).sum() >= min(kept, known.sum())
    if rule.value == "score":
        assert found.sum() == min(quota, where.passing.sum())
    if rule.value == "gap":
        assert (found & slm.right).sum() <= kept
    again = draw_samples(rule, scores, where, quota=quota, slm=slm)
    np.testing.assert_array_equal(found, again)


@settings(max_examples=50, deadline=None)
@given(rows=CASES, quota=st.integers(0, 40), seed=st.integers(0, 1000))
def test_the_default_rule_is_the_best_by_score_within_the_quotas(
    rows: list[tuple[float, float, bool, bool, int, int]], quota: int, seed: int
) -> None:
    scores, _, _, passing, groups, strata = (np.array([row[at] for row in rows]) for at in range(6))
    where = Eligible(
        passing=passing.astype(np.bool_),
        groups=groups.astype(np.int64),
        shares=np.array([3.0, 1.0, 0.0, 1.0]),
        strata=strata.astype(np.int64),
        ties=seed,
        seed=(seed, 0),
    )
    quotas = where.quotas(where.passing, quota)
    expected = pick_by_cluster(scores, where.passing, where.groups, quotas, seed=seed)
    found = draw_samples(SampleRule(), scores, where, quota=quota)
    np.testing.assert_array_equal(found, expected)
