"""A ledger's rules again, slow and obvious: lists of what was paid, and epsilon asked anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import GaussianEvent, PrivacyEvent
from lada_secure.privacy.ledger.carried_budget import grant_restart
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.terms import BudgetCaps, ReleaseSpec

SITE_KEYS = tuple(
    Ed25519PrivateKey.from_private_bytes(b"site key number %d for tests only" % number)
    for number in range(2)
)
AUDITOR_KEY = Ed25519PrivateKey.from_private_bytes(b"auditor key for tests, 32 bytes.")
START = datetime(2026, 1, 31, tzinfo=UTC)
EXPIRES = START + timedelta(minutes=20)
PLAN = "a" * 64
DELTA = 1e-6
CAPS = BudgetCaps(target_delta=DELTA, total_epsilon=1.5, study_epsilon=1.0)
TIME_STEP_S = 60

Outcome = Literal["refused", "over the cap", "written", "stored", "resumed", "paid"]


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def statistics(study_id: str = "a", round_id: int = 0, noise: float = 15.0) -> ReleaseSpec:
    """A noised statistic."""
    return ReleaseSpec(
        study_id=study_id,
        plan_hash=PLAN,
        round_id=round_id,
        purpose="statistics",
        mechanism="discrete_gaussian",
        event=GaussianEvent(noise),
        parameters={"l2_sensitivity": 10.0, "std": 10 * noise},
    )


def new_ledger(clock: Clock) -> MemoryLedger:
    """A ledger that begins now."""
    return MemoryLedger(
        identity=LedgerIdentity(site="s", population="p", ledger_id="1d" * 32),
        signing_key=SITE_KEYS[0],
        caps=CAPS,
        clock=clock,
        time_step_s=TIME_STEP_S,
    )


def approved_ledger() -> MemoryLedger:
    """A ledger that begins with an approval of study a."""
    ledger = new_ledger(Clock())
    ledger.decide("approve", study_id="a", plan_hash=PLAN, expires=EXPIRES, decided_by="x")
    return ledger


def restarted(ledger: MemoryLedger, key: int, clock: Clock | None = None) -> MemoryLedger:
    """The ledger that the auditor lets begin in place of one that it knows to its end.

    Args: key: index of the site's key that begins it.
    """
    clock = clock or Clock()
    grant = grant_restart(
        ledger.entries(),
        public_key=SITE_KEYS[key].public_key().public_bytes_raw(),
        target_delta=DELTA,
        requested_by="x",
        auditor="auditor",
        granted_by="y",
        signing_key=AUDITOR_KEY,
        time=clock.now,
    )
    return MemoryLedger(
        identity=LedgerIdentity(
            site=grant.site, population=grant.population, ledger_id=grant.ledger_id
        ),
        signing_key=SITE_KEYS[key],
        caps=CAPS,
        clock=clock,
        time_step_s=TIME_STEP_S,
        grant=grant,
    )


@dataclass
class Oracle:
    """What a ledger should do next, and what it should have cost so far."""

    last_write: datetime = START
    decisions: dict[str, str] = field(default_factory=dict)
    paid: list[PrivacyEvent] = field(default_factory=list)
    paid_by_study: dict[str, list[PrivacyEvent]] = field(default_factory=dict)
    open: set[tuple[str, int, float]] = field(default_factory=set)
    committed: dict[tuple[str, int], tuple[float, bytes]] = field(default_factory=dict)

    def _clock(self, now: datetime) -> datetime | None:
        """The time that counts, or None where the clock was set back."""
        if self.last_write - now > timedelta(seconds=2):
            return None
        return max(now, self.last_write)

    def decide(self, decision: str, study: str, now: datetime) -> Outcome:
        """What becomes of a decision."""
        time = self._clock(now)
        approved = self.decisions.get(study) == "approve"
        if time is None:
            return "refused"
        if decision == "approve" and time >= EXPIRES:
            return "refused"
        if decision == "withdraw" and not approved:
            return "refused"
        self.decisions[study] = decision
        self.last_write = time
        return "written"

    def _may_spend(self, study: str, now: datetime) -> datetime | None:
        time = self._clock(now)
        if time is None or self.decisions.get(study) != "approve" or time > EXPIRES:
            return None
        return time

    def reserve(self, study: str, round_id: int, noise: float, now: datetime) -> Outcome:
        """What becomes of a reservation."""
        time = self._may_spend(study, now)
        if time is None:
            return "refused"
        done = self.committed.get((study, round_id))
        if done is not None:
            return "stored" if done[0] == noise else "refused"
        if (study, round_id, noise) in self.open:
            self.last_write = time
            return "resumed"
        event = GaussianEvent(noise)
        own = [*self.paid_by_study.get(study, []), event]
        if epsilon(own, target_delta=DELTA) > CAPS.study_epsilon:
            return "over the cap"
        if epsilon([*self.paid, event], target_delta=DELTA) > CAPS.total_epsilon:
            return "over the cap"
        self.paid.append(event)
        self.paid_by_study[study] = own
        self.open.add((study, round_id, noise))
        self.last_write = time
        return "paid"

    def commit(self, study: str, round_id: int, noise: float, output: bytes, now: datetime) -> None:
        """A reservation that was just made or used again leads to an output."""
        self.committed[study, round_id] = (noise, output)
        self.last_write = max(now, self.last_write)

    def renew_key(self, now: datetime) -> Outcome:
        """What becomes of a renewal."""
        time = self._clock(now)
        if time is None:
            return "refused"
        self.last_write = time
        return "written"

    def lose_and_restart(self, now: datetime) -> None:
        """Decisions, open reservations and outputs are gone; what was paid is not."""
        self.last_write = now
        self.decisions, self.open, self.committed = {}, set(), {}
        self.paid_by_study = {study: list(self.paid) for study in self.paid_by_study}

    def epsilon(self, study: str | None = None) -> float:
        """Everything that was paid, asked anew."""
        events = self.paid if study is None else self.paid_by_study.get(study, [])
        return epsilon(events, target_delta=DELTA)
