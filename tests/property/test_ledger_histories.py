"""Whatever is tried in whatever order, a ledger does and costs what the slow oracle says."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ledger_oracle import (
    AUDITOR_KEY,
    CAPS,
    DELTA,
    EXPIRES,
    PLAN,
    SITE_KEYS,
    Clock,
    Oracle,
    Outcome,
    new_ledger,
    restarted,
    statistics,
)

from lada_secure.errors import LedgerError, PrivacyBudgetExceeded
from lada_secure.privacy.ledger.entries import CommitEntry, ReserveEntry, parse_ledger_lines
from lada_secure.privacy.ledger.verification import verify_ledger

STUDIES = st.sampled_from(["a", "b"])
ROUNDS = st.integers(0, 3)
NOISES = st.sampled_from([15.0, 18.0])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["approve", "approve", "refuse", "withdraw"]), STUDIES),
        st.tuples(st.sampled_from(["crash", "release"]), STUDIES, ROUNDS, NOISES),
        st.tuples(st.just("wait"), st.integers(-10, 100)),
        st.tuples(st.just("renew key")),
        st.tuples(st.just("lose")),
    ),
    max_size=40,
)


class Site:
    """A ledger and its oracle, told the same."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.oracle = Oracle()
        self.ledger = new_ledger(self.clock)
        self.key = 0
        self.outputs: dict[tuple[str, int], bytes] = {}

    def step(self, number: int, step: tuple[Any, ...]) -> None:
        """Do one thing; the ledger has to do what the oracle says."""
        match step:
            case ("wait", seconds):
                self.clock.now += timedelta(seconds=seconds)
            case ("renew key",):
                self._expect(self.oracle.renew_key(self.clock.now), self._renew)
            case ("lose",):
                self._restart()
            case ("crash" | "release" as action, study, round_id, noise):
                self._spend(action, study, round_id, noise, b"output %d" % number)
            case (decision, study):
                expected = self.oracle.decide(decision, study, self.clock.now)
                self._expect(expected, lambda: self._decide(decision, study))

    def _expect(self, expected: Outcome, act: Any) -> Any:
        """Act; a refusal writes nothing, and nothing but a refusal is one."""
        before = self.ledger.export_lines()
        if expected == "refused":
            with pytest.raises(LedgerError):
                act()
        elif expected == "over the cap":
            with pytest.raises(PrivacyBudgetExceeded):
                act()
        else:
            result = act()
            written = self.ledger.export_lines()
            assert written.startswith(before)
            assert written.count(b"\n") - before.count(b"\n") == (expected != "stored")
            return result
        assert self.ledger.export_lines() == before
        return None

    def _renew(self) -> None:
        self.key = 1 - self.key
        try:
            self.ledger.renew_key(SITE_KEYS[self.key], decided_by="x")
        except LedgerError:
            self.key = 1 - self.key
            raise

    def _decide(self, decision: Any, study: str) -> None:
        self.ledger.decide(
            decision, study_id=study, plan_hash=PLAN, expires=EXPIRES, decided_by="x"
        )

    def _spend(self, action: str, study: str, round_id: int, noise: float, output: bytes) -> None:
        spec = statistics(study, round_id, noise)
        expected = self.oracle.reserve(study, round_id, noise, self.clock.now)
        paid = self._expect(expected, lambda: self.ledger.reserve(spec))
        if paid is None:
            return
        assert (paid.stored_output is not None) == (expected == "stored")
        if expected == "stored":
            assert paid.stored_output == self.oracle.committed[study, round_id][1]
        elif action == "release":
            assert self.ledger.commit(paid, output).value == output
            self.oracle.commit(study, round_id, noise, output, self.clock.now)
            self.outputs[study, round_id] = output

    def _restart(self) -> None:
        self.ledger = restarted(self.ledger, self.key, self.clock)
        self.oracle.lose_and_restart(self.clock.now)
        self.outputs = {}

    def check(self) -> None:
        """The ledger costs what was paid, and nothing was released that was not paid for."""
        for study in (None, "a", "b"):
            spent = self.ledger.epsilon_spent(DELTA, study_id=study)
            assert spent == pytest.approx(self.oracle.epsilon(study), rel=1e-4, abs=1e-9)

    def verify(self) -> None:
        """The auditor finds the exported lines whole, and the same figures in them."""
        entries = parse_ledger_lines(self.ledger.export_lines())
        summary = verify_ledger(
            entries,
            public_key=SITE_KEYS[self.key].public_key().public_bytes_raw(),
            caps=CAPS,
            site="s",
            population="p",
            auditor_key=AUDITOR_KEY.public_key().public_bytes_raw(),
        )
        assert summary.epsilon <= CAPS.total_epsilon
        assert all(one.epsilon <= CAPS.study_epsilon for one in summary.studies if one.reservations)
        assert summary.epsilon == pytest.approx(self.oracle.epsilon(), rel=1e-4, abs=1e-9)
        for (study, round_id), output in self.outputs.items():
            assert self.ledger.stored_output(statistics(study, round_id).key) == output
        commits = [one for one in entries if isinstance(one, CommitEntry)]
        reserved = {one.entry_hash for one in entries if isinstance(one, ReserveEntry)}
        assert len(commits) == len(self.outputs)
        assert len({one.reserve_hash for one in commits} & reserved) == len(commits)


APPROVED = [("approve", "a"), ("approve", "b")]


@settings(max_examples=60, deadline=None)
@given(STEPS)
@example([*APPROVED, *[("release", "a", number, 15.0) for number in range(4)] * 2])
@example([*APPROVED, *[("crash", "ab"[n % 2], n % 4, 15.0) for n in range(30)]])
@example([*APPROVED, *[("crash", "a", 0, 15.0)] * 9, ("release", "a", 0, 15.0)])
@example([*APPROVED, *[("crash", "a", n % 2, 15.0 + 3 * (n % 3 == 0)) for n in range(12)]])
@example([*APPROVED, ("release", "a", 0, 15.0), ("lose",), *APPROVED, ("release", "a", 0, 15.0)])
@example([*APPROVED, ("crash", "a", 0, 15.0), ("renew key",), ("release", "a", 0, 15.0)])
@example([("lose",), ("lose",), *APPROVED, ("release", "b", 0, 18.0), ("lose",), ("lose",)])
@example([*APPROVED, ("wait", -10), ("crash", "a", 0, 15.0), ("wait", 9), ("crash", "a", 0, 15.0)])
def test_a_ledger_does_and_costs_what_the_oracle_says(steps: list[tuple[Any, ...]]) -> None:
    site = Site()
    for number, step in enumerate(steps):
        site.step(number, step)
        site.check()
    site.verify()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), NOISES)
def test_however_often_releases_crash_they_cost_what_they_cost_without_a_crash(
    crashes: list[int], noise: float
) -> None:
    calm, troubled = Site(), Site()
    for site in (calm, troubled):
        site.step(0, ("approve", "a"))
    for round_id, count in enumerate(crashes):
        for _ in range(count):
            troubled.step(0, ("crash", "a", round_id, noise))
        for site in (calm, troubled):
            site.step(round_id, ("release", "a", round_id, noise))
    assert troubled.ledger.epsilon_spent(DELTA) == calm.ledger.epsilon_spent(DELTA)
    assert len(troubled.outputs) == len(calm.outputs)
    troubled.verify()
