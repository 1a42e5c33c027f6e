"""Statistics per privacy unit: brute-force sensitivity, ledgered release, decoding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from lada_secure.allocation.statistics import (
    MeasuredRecord,
    NoisedStatistics,
    release_statistics,
    statistics_spec,
    unit_statistics,
)
from lada_secure.allocation.statistics_parameters import (
    StatisticsParameters,
    noise_std,
    statistics_scale,
)
from lada_secure.arrays import IntArray
from lada_secure.canonical import canonical_json
from lada_secure.errors import (
    LedgerError,
    LocalProtocolError,
    ParameterError,
    PrivacyBudgetExceeded,
)
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.entries import LedgerIdentity, ReserveEntry
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.terms import BudgetCaps, Reservation
from lada_secure.privacy.release.noised_vectors import parse_vector, vector_bytes
from lada_secure.privacy.released import Released

ALPHA = 1e-6
PLAN_HASH = "ab" * 32
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)

# One unit of a test: (cluster, loss) of each of its records.
Rows = list[tuple[int, float]]


def measured_of(people: Iterable[tuple[str, Rows]]) -> list[list[MeasuredRecord]]:
    return [
        [MeasuredRecord(cluster=cluster, loss=loss) for cluster, loss in rows] for _, rows in people
    ]


def statistics_of(
    people: Iterable[tuple[str, Rows]], public: StatisticsParameters | None = None
) -> IntArray:
    return unit_statistics(measured_of(people), public or parameters())


def parameters(
    *,
    clusters: int = 3,
    loss_clip: float = 4.0,
    noise_multiplier: float = 4.0,
    max_units: int = 500,
    scale: int = 120,
) -> StatisticsParameters:
    return StatisticsParameters(
        clusters=clusters,
        loss_clip=loss_clip,
        noise_multiplier=noise_multiplier,
        max_units=max_units,
        scale=scale,
    )


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


def release(
    measure: Callable[[Reservation], list[list[MeasuredRecord]]],
    book: LedgerBook,
    public: StatisticsParameters,
    *,
    round_id: int = 0,
) -> Released[NoisedStatistics]:
    return release_statistics(
        measure,
        parameters=public,
        book=book,
        spec=statistics_spec(public, study_id="study", plan_hash=PLAN_HASH, round_id=round_id),
    )


def norm(vector: IntArray) -> float:
    return math.sqrt(sum(int(entry) ** 2 for entry in vector))


def test_every_kind_of_unit_stays_within_the_sensitivity_by_brute_force() -> None:
    """All units of 1 to 4 records over 3 clusters and 4 losses, removed from a data set."""
    losses = (0.0, 1.3, 4.0, math.inf)
    others: list[tuple[str, Rows]] = [("u1", [(0, 2.0), (1, 0.7)]), ("u2", [(2, 9.0)] * 3)]
    public = parameters(scale=7)
    without = statistics_of(others, public)
    largest = 0.0
    kinds = list(itertools.product(range(3), losses))
    for size in range(1, 5):
        for rows in itertools.combinations_with_replacement(kinds, size):
            change = norm(statistics_of([*others, ("u3", list(rows))], public) - without)
            assert change <= public.l2_sensitivity
            largest = max(largest, change)
    # The bound is tight: a unit of one topic at the clip reaches it.
    assert largest == pytest.approx(7 * math.sqrt(2.0), rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 4), st.floats(allow_nan=True, allow_infinity=True)),
        min_size=1,
        max_size=12,
    ),
    scale=st.integers(1, 5000),
    clip=st.floats(1e-3, 1e3),
)
def test_any_unit_stays_within_the_sensitivity(rows: Rows, scale: int, clip: float) -> None:
    public = parameters(clusters=5, loss_clip=clip, scale=scale, noise_multiplier=40.0)
    got = statistics_of([("u", rows)], public)
    masses, loss_masses = got[:5], got[5:]
    assert (got >= 0).all()
    assert int(masses.sum()) <= scale
    assert (loss_masses <= masses).all()
    assert norm(got) <= public.l2_sensitivity


def test_statistics_equal_exact_fractions_rounded_towards_zero_per_unit() -> None:
    people: list[tuple[str, Rows]] = [
        ("u1", [(0, 1.0), (0, 3.0), (1, 2.0)]),
        ("u2", [(2, 0.5)]),
        ("u3", [(1, 8.0), (2, 0.25), (2, 0.5), (0, 4.0), (0, 0.0)]),
    ]
    scale, clip = 100, 4
    expected = [0] * 6
    for _, rows in people:
        for cluster in range(3):
            inside = [Fraction(loss) for where, loss in rows if where == cluster]
            mass = Fraction(len(inside), len(rows))
            lost = sum((min(loss / clip, Fraction(1)) for loss in inside), Fraction(0)) / len(rows)
            expected[cluster] += math.floor(scale * mass)
            expected[3 + cluster] += math.floor(scale * lost)
    assert statistics_of(people, parameters(scale=scale)).tolist() == expected


@pytest.mark.parametrize(
    ("loss", "steps"),
    [
        pytest.param(math.nan, 120, id="no number counts as the clip"),
        pytest.param(math.inf, 120, id="infinite counts as the clip"),
        pytest.param(-3.0, 0, id="negative counts as zero"),
        pytest.param(2.0, 60, id="half the clip counts half"),
    ],
)
def test_a_loss_of(loss: float, steps: int) -> None:
    assert statistics_of([("u", [(1, loss)])]).tolist() == [0, 120, 0, 0, steps, 0]


def test_a_unit_counts_once_however_many_records_it_has() -> None:
    one = statistics_of([("u", [(0, 4.0)])])
    many = statistics_of([("u", [(0, 4.0)] * 6)])
    np.testing.assert_array_equal(one, many)


def test_no_units_give_zeros() -> None:
    assert statistics_of([]).tolist() == [0] * 6


def test_a_unit_that_could_not_be_measured_and_a_cluster_out_of_range_add_nothing() -> None:
    good = [("u", [(0, 1.0)])]
    odd = [("v", []), ("w", [(3, 1.0)]), ("x", [(-1, 1.0)])]
    np.testing.assert_array_equal(statistics_of(good + odd), statistics_of(good))


def test_the_release_is_paid_for_before_any_record_is_touched() -> None:
    book = ledger()
    reserved: list[int] = []

    def compute(_paid: Reservation) -> list[list[MeasuredRecord]]:
        reserved.append(sum(isinstance(one, ReserveEntry) for one in book.entries()))
        return measured_of([("u", [(0, 1.0)])])

    released = release(compute, book, parameters())
    assert reserved == [1]
    assert type(released) is Released
    assert released.paid_by == next(
        one.entry_hash for one in book.entries() if isinstance(one, ReserveEntry)
    )


def test_a_release_over_the_cap_touches_no_record() -> None:
    def compute(_paid: Reservation) -> list[list[MeasuredRecord]]:
        raise AssertionError("a record was touched")

    with pytest.raises(PrivacyBudgetExceeded):
        release(compute, ledger(epsilon=0.5), parameters(noise_multiplier=4.0))


def test_a_retry_sends_the_same_bytes_and_pays_nothing() -> None:
    book = ledger()
    first = release(lambda _paid: measured_of([("u", [(0, 1.0)])]), book, parameters())
    spent = book.epsilon_spent(1e-5)

    def again(_paid: Reservation) -> list[list[MeasuredRecord]]:
        raise AssertionError("a record was touched twice")

    second = release(again, book, parameters())
    np.testing.assert_array_equal(first.value.vector, second.value.vector)
    assert book.epsilon_spent(1e-5) == spent
    third = release(lambda _paid: [], book, parameters(), round_id=1)
    assert (third.value.vector != first.value.vector).any()
    assert book.epsilon_spent(1e-5) > spent


def test_the_ledger_states_the_sensitivity_and_noise_that_were_used() -> None:
    book, public = ledger(), parameters(noise_multiplier=3.0)
    release(lambda _paid: [], book, public)
    entry = next(one for one in book.entries() if isinstance(one, ReserveEntry))
    assert entry.mechanism == "discrete_gaussian"
    assert entry.parameters == {"l2_sensitivity": public.l2_sensitivity, "std": public.std}
    assert entry.parameters["std"] >= 3.0 * 120 * math.sqrt(2.0)


def test_noise_has_the_stated_deviation_and_is_fresh_per_entry() -> None:
    """2 x 256 x 20 draws: catches a deviation that is 6% off, at ALPHA two-sided."""
    public = parameters(clusters=256)
    people = [("u", [(0, 4.0)])]
    exact, measured = statistics_of(people, public), measured_of(people)
    draws = np.concatenate(
        [release(lambda _paid: measured, ledger(), public).value.vector - exact for _ in range(20)]
    ).astype(np.float64)
    statistic = float((draws**2).sum()) / public.std**2
    low, high = chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], df=len(draws))
    assert low < statistic < high


def test_a_site_with_more_units_than_planned_is_clamped_to_the_public_bound() -> None:
    public = parameters(max_units=10, noise_multiplier=0.2)
    crowd = measured_of([(f"u{number}", [(0, 9.0)]) for number in range(300)])
    vector = release(lambda _paid: crowd, ledger(epsilon=400.0), public).value.vector
    assert vector[0] == vector[3] == public.site_bound
    assert np.abs(vector).max() <= public.site_bound


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(parameters(noise_multiplier=8.0), id="another noise"),
        pytest.param(parameters(scale=240), id="another scale"),
    ],
)
def test_paying_for_another_release_than_the_one_made_is_refused(
    other: StatisticsParameters,
) -> None:
    book = ledger()
    with pytest.raises(LocalProtocolError, match="statistics_spec"):
        release_statistics(
            lambda _paid: [],
            parameters=parameters(),
            book=book,
            spec=statistics_spec(other, study_id="study", plan_hash=PLAN_HASH, round_id=0),
        )
    assert book.epsilon_spent(1e-5) == 0.0


def test_noised_statistics_survive_the_ledgers_disk() -> None:
    public = parameters()
    noised = NoisedStatistics(vector=np.array([5, -3, 2, 0, -1, 7]), parameters=public)
    np.testing.assert_array_equal(stored(vector_bytes(noised.vector)), noised.vector)


def stored(raw: bytes) -> IntArray:
    public = parameters()
    return parse_vector(raw, what="statistics", length=public.length, bound=public.site_bound)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b'{"vector":[1,2,3,4,5,6], "version":1}', id="another spelling"),
        pytest.param(canonical_json({"version": 1}), id="no vector"),
        pytest.param(canonical_json({"version": 2, "vector": [0] * 6}), id="another version"),
        pytest.param(canonical_json({"version": 1, "vector": [0] * 5}), id="too short"),
        pytest.param(canonical_json({"version": 1, "vector": [0.5] * 6}), id="fractions"),
        pytest.param(canonical_json({"version": 1, "vector": [True] * 6}), id="truth values"),
        pytest.param(canonical_json({"version": 1, "vector": [10**9] * 6}), id="beyond the bound"),
        pytest.param(canonical_json({"version": 1, "vector": "000000"}), id="text"),
        pytest.param(canonical_json([1]), id="a list"),
    ],
)
def test_stored_statistics_are_refused_for(raw: bytes) -> None:
    with pytest.raises(LedgerError, match="stored statistics"):
        stored(raw)


def test_estimates_recover_masses_and_mean_losses() -> None:
    public = parameters(noise_multiplier=1.0)
    people = [(f"a{n}", [(0, 1.0)]) for n in range(300)] + [
        (f"b{n}", [(1, 3.0)]) for n in range(100)
    ]
    exact = statistics_of(people)
    own = NoisedStatistics(vector=exact, parameters=public)
    np.testing.assert_allclose(own.masses, [300.0, 100.0, 0.0])
    np.testing.assert_allclose(own.mean_losses, [1.0, 3.0, 1.5])
    np.testing.assert_allclose(own.shares, [0.75, 0.25, 0.0])


def test_estimates_of_noise_alone_are_equal_shares_and_losses_within_the_clip() -> None:
    public = parameters()
    for vector in (np.zeros(6, dtype=np.int64), np.full(6, -public.site_bound)):
        estimates = NoisedStatistics(vector=vector, parameters=public)
        np.testing.assert_allclose(estimates.shares, 1 / 3)
        assert (estimates.mean_losses >= 0.0).all()
        assert (estimates.mean_losses <= 4.0).all()


@pytest.mark.parametrize("noise_multiplier", [0.02, 0.1, 1.0, 5.0, 40.0])
def test_the_chosen_scale_gives_the_noise_sixteen_steps(noise_multiplier: float) -> None:
    scale = statistics_scale(noise_multiplier)
    assert scale % 120 == 0
    assert noise_std(scale=scale, noise_multiplier=noise_multiplier) >= 16.0
    if scale > 120:
        assert noise_std(scale=scale - 120, noise_multiplier=noise_multiplier) < 16.0
    parameters(noise_multiplier=noise_multiplier, scale=scale)


def test_noise_of_fewer_than_sixteen_steps_is_refused_with_the_scale_to_use() -> None:
    with pytest.raises(ParameterError, match="raise the scale from 1 to 120"):
        parameters(noise_multiplier=1.0, scale=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clusters": 0},
        {"clusters": 257},
        {"max_units": 0},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"scale": 0},
        {"loss_clip": 0.0},
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match="expected"):
        parameters(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [RuntimeError("a record"), MemoryError(), KeyError("a name")])
def test_sums_that_cannot_be_computed_are_zero_with_all_of_their_noise(error: Exception) -> None:
    public = parameters(clusters=256)

    def fails(_paid: Reservation) -> list[list[MeasuredRecord]]:
        raise error

    book = ledger()
    drawn = [release(fails, book, public, round_id=at).value.vector for at in range(3)]
    statistic = float((np.concatenate(drawn).astype(np.float64) ** 2).sum()) / public.std**2
    low, high = chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], df=3 * public.length)
    assert low < statistic < high


@pytest.mark.parametrize("stop", [KeyboardInterrupt, LocalProtocolError])
def test_a_person_and_our_own_checks_still_end_a_release(stop: type[BaseException]) -> None:
    def ends(_paid: Reservation) -> list[list[MeasuredRecord]]:
        raise stop

    with pytest.raises(stop):
        release(ends, ledger(), parameters())
