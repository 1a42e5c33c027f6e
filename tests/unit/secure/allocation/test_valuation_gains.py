"""Gains of data valuations: what a unit may change, what is released, and what is read back."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from lada_secure.allocation.valuation_gains import (
    NoisedGains,
    ValuationParameters,
    release_gains,
    unit_gains,
    valuation_spec,
)
from lada_secure.arrays import FloatArray, IntArray
from lada_secure.canonical import canonical_json
from lada_secure.errors import (
    LedgerError,
    LocalProtocolError,
    ParameterError,
    PrivacyBudgetExceeded,
)
from lada_secure.privacy.ledger.entries import LedgerIdentity, ReserveEntry
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.terms import BudgetCaps
from lada_secure.privacy.release.noised_vectors import parse_vector

ALPHA = 1e-6
PLAN_HASH = "ab" * 32
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
CLUSTERS = 3
PUBLIC = ValuationParameters(clusters=CLUSTERS, gain_clip=0.5, noise_multiplier=4.0)

# Gains of one record per cluster, in nats per token.
Row = list[float]


def measured_of(
    people: list[tuple[str, list[Row]]], parameters: ValuationParameters = PUBLIC
) -> list[FloatArray]:
    return [
        np.array(rows, dtype=np.float64) if rows else np.zeros((0, parameters.clusters))
        for _, rows in people
    ]


def gains_of(
    people: list[tuple[str, list[Row]]], parameters: ValuationParameters = PUBLIC
) -> IntArray:
    return unit_gains(measured_of(people, parameters), parameters)


def ledger(*, epsilon: float = 8.0) -> MemoryLedger:
    key = Ed25519PrivateKey.generate()
    book = MemoryLedger(
        identity=LedgerIdentity.new(site="site-a", population="people"),
        signing_key=key,
        caps=BudgetCaps(target_delta=1e-5, total_epsilon=epsilon, study_epsilon=epsilon),
        clock=lambda: NOW,
    )
    book.decide(
        "approve",
        study_id="study",
        plan_hash=PLAN_HASH,
        expires=NOW + timedelta(days=1),
        decided_by="officer",
    )
    return book


def released(
    people: list[tuple[str, list[Row]]], book: MemoryLedger, *, round_id: int = 0
) -> NoisedGains:
    return release_gains(
        lambda _paid: measured_of(people),
        parameters=PUBLIC,
        book=book,
        spec=valuation_spec(PUBLIC, study_id="study", plan_hash=PLAN_HASH, round_id=round_id),
    ).value


def test_a_small_example_by_hand() -> None:
    """Clip 0.5, scale 120: 0.25 nats are half a clip, 60 steps; two records count by their mean."""
    found = gains_of([("a", [[0.25, 0.0, 0.0]]), ("b", [[-0.5, 0.0, 0.1], [0.5, 0.0, 0.1]])])
    assert PUBLIC.scale == 120
    assert found.tolist() == [60, 0, 24, 240]
    # Two clips of norm at most: sqrt(1 + 1 + 1 + 1) is just within it.
    assert gains_of([("a", [[9.0, -9.0, 9.0]])]).tolist() == [120, -120, 120, 120]


def test_a_unit_whose_gains_are_beyond_the_norm_is_scaled_down_as_a_whole() -> None:
    wide = ValuationParameters(clusters=15, gain_clip=0.5, noise_multiplier=4.0)
    found = gains_of([("a", [[-3.0] * 15])], wide)
    # 16 entries of one clip have norm 4: each is halved, the weight too, so that ratios stay.
    assert found.tolist() == [-60] * 15 + [60]


def test_units_without_reasons_and_wrong_numbers_add_nothing_that_they_should_not() -> None:
    assert gains_of([("a", [])]).tolist() == [0, 0, 0, 0]
    assert gains_of([]).tolist() == [0, 0, 0, 0]
    odd = gains_of([("a", [[math.nan, math.inf, -math.inf]])])
    assert odd.tolist() == [0, 120, -120, 120]
    with pytest.raises(ParameterError, match="expected 3 gains per record"):
        gains_of([("a", [[1.0, 2.0]])])


rows = st.lists(
    st.floats(allow_nan=True, allow_infinity=True), min_size=CLUSTERS, max_size=CLUSTERS
)
units = st.lists(st.lists(rows, max_size=4), max_size=6)


@given(units)
def test_no_unit_changes_the_sum_by_more_than_the_sensitivity(people: list[list[Row]]) -> None:
    named = [(f"u{at}", gains) for at, gains in enumerate(people)]
    whole = gains_of(named)
    for at in range(len(named)):
        without = gains_of([*named[:at], *named[at + 1 :]])
        change = whole - without
        assert int(np.dot(change, change)) <= (2 * PUBLIC.scale) ** 2
        assert math.sqrt(int(np.dot(change, change))) <= PUBLIC.l2_sensitivity


@given(st.integers(min_value=1, max_value=256), st.integers(min_value=0, max_value=2**32 - 1))
def test_the_bound_holds_for_any_number_of_clusters(clusters: int, seed: int) -> None:
    parameters = ValuationParameters(clusters=clusters, gain_clip=0.3, noise_multiplier=0.05)
    row = np.random.default_rng(seed).normal(size=clusters)
    found = gains_of([("a", [row.tolist()])], parameters)
    assert int(np.dot(found, found)) <= (2 * parameters.scale) ** 2


def test_what_is_paid_for_is_the_noise_that_is_added() -> None:
    book = ledger()
    released([("a", [[0.1, 0.2, 0.3]])], book)
    (entry,) = [one for one in book.entries() if isinstance(one, ReserveEntry)]
    assert entry.purpose == "trials"
    assert entry.mechanism == "discrete_gaussian"
    assert float(str(entry.parameters["l2_sensitivity"])) >= 2 * PUBLIC.scale
    assert PUBLIC.std == pytest.approx(4.0 * 2 * 120)
    assert PUBLIC.std >= 4.0 * PUBLIC.l2_sensitivity


@pytest.mark.slow
def test_the_noise_of_a_release_has_the_stated_spread() -> None:
    people = [("a", [[0.1, 0.2, 0.3]])]
    exact = gains_of(people)
    draws = 400
    noise = np.array(
        [released(people, ledger(), round_id=0).vector - exact for _ in range(draws)],
        dtype=np.float64,
    )
    statistic = float((noise**2).sum()) / PUBLIC.std**2
    count = noise.size
    assert chi2.ppf(ALPHA / 2, count) < statistic < chi2.ppf(1 - ALPHA / 2, count)


def test_a_release_is_paid_once_and_a_retry_gives_the_same() -> None:
    book = ledger()
    first = released([("a", [[0.1, 0.2, 0.3]])], book)
    again = release_gains(
        lambda _paid: pytest.fail("records were read again"),
        parameters=PUBLIC,
        book=book,
        spec=valuation_spec(PUBLIC, study_id="study", plan_hash=PLAN_HASH, round_id=0),
    ).value
    assert again.vector.tolist() == first.vector.tolist()
    assert sum(isinstance(one, ReserveEntry) for one in book.entries()) == 1


def test_nothing_is_computed_without_budget_or_for_other_parameters() -> None:
    with pytest.raises(PrivacyBudgetExceeded):
        release_gains(
            lambda _paid: pytest.fail("records were read"),
            parameters=PUBLIC,
            book=ledger(epsilon=0.01),
            spec=valuation_spec(PUBLIC, study_id="study", plan_hash=PLAN_HASH, round_id=0),
        )
    other = ValuationParameters(clusters=CLUSTERS, gain_clip=0.5, noise_multiplier=5.0)
    with pytest.raises(LocalProtocolError, match="trials_spec"):
        release_gains(
            lambda _paid: pytest.fail("records were read"),
            parameters=PUBLIC,
            book=ledger(),
            spec=valuation_spec(other, study_id="study", plan_hash=PLAN_HASH, round_id=0),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters": 0}, "clusters"),
        ({"clusters": 257}, "clusters"),
        ({"gain_clip": 0.0}, "clip"),
        ({"gain_clip": math.inf}, "clip"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
    ],
)
def test_parameters_out_of_range_are_named(changes: dict[str, float], message: str) -> None:
    base = {"clusters": 3, "gain_clip": 0.5, "noise_multiplier": 4.0}
    with pytest.raises(ParameterError, match=message):
        ValuationParameters(**{**base, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "raw",
    [
        b"no json",
        canonical_json([1]),
        canonical_json({"version": 2, "vector": [0, 0, 0, 0]}),
        canonical_json({"version": 1, "vector": [0, 0, 0]}),
        canonical_json({"version": 1, "vector": [0, 0, 0, True]}),
        canonical_json({"version": 1, "vector": [0, 0, 0, 2**53]}),
        canonical_json({"version": 1, "vector": 3}),
    ],
)
def test_damaged_stored_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(LedgerError, match="stored trials"):
        parse_vector(raw, what="trials", length=PUBLIC.length, bound=2**53 - 1)


def test_means_are_over_the_noised_number_of_units_with_reasons() -> None:
    found = NoisedGains(
        vector=np.array([6_000, -12_000, 0, 12_000], dtype=np.int64), parameters=PUBLIC
    )
    assert found.counts
    assert found.weight == 100.0
    assert found.means.tolist() == [0.5, -1.0, 0.0]
    assert found.std == pytest.approx(8.0 / 100.0)
    # A weight that noise alone may have made says nothing, and nothing is divided by it.
    lost = NoisedGains(vector=np.array([10, 10, 10, 959], dtype=np.int64), parameters=PUBLIC)
    assert not lost.counts
    assert lost.weight == pytest.approx(8.0)
