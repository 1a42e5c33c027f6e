"""A small site for ledger tests: keys, caps, a clock that only the test moves, releases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.privacy.accounting.events import DpSgdEvent, GaussianEvent
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.carried_budget import grant_restart
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.restart import RestartGrant
from lada_secure.privacy.ledger.terms import DISCRETE_GAUSSIAN, DP_SGD, BudgetCaps, ReleaseSpec

SITE_KEY = Ed25519PrivateKey.from_private_bytes(b"site key for tests only, 32 byte")
NEW_KEY = Ed25519PrivateKey.from_private_bytes(b"the site's renewed key, 32 byte.")
AUDITOR_KEY = Ed25519PrivateKey.from_private_bytes(b"auditor key for tests, 32 bytes.")
START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
PLAN = "a" * 64
TIME_STEP_S = 60
CAPS = BudgetCaps(target_delta=1e-6, total_epsilon=8.0, study_epsilon=6.0)


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on; negative sets the clock back."""
        self.now += timedelta(seconds=seconds)


def raw_public_key(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes that identify a key."""
    return key.public_key().public_bytes_raw()


SITE = raw_public_key(SITE_KEY)
AUDITOR = raw_public_key(AUDITOR_KEY)
IDENTITY = LedgerIdentity(site="hospital-a", population="patients", ledger_id="1d" * 32)


def memory_ledger(clock: Clock | None = None, *, caps: BudgetCaps = CAPS) -> MemoryLedger:
    """An empty ledger of the test site."""
    return MemoryLedger(
        identity=IDENTITY,
        signing_key=SITE_KEY,
        caps=caps,
        clock=clock or Clock(),
        time_step_s=TIME_STEP_S,
    )


def grant_for(known: MemoryLedger, *, key: Ed25519PrivateKey = SITE_KEY) -> RestartGrant:
    """The auditor's grant to begin again in place of a ledger that it knows to its end."""
    return grant_restart(
        known.entries(),
        public_key=raw_public_key(key),
        target_delta=1e-6,
        requested_by="dr.weber",
        auditor="auditor",
        granted_by="ms.okafor",
        signing_key=AUDITOR_KEY,
        time=START + timedelta(hours=1),
    )


def restarted_ledger(
    grant: RestartGrant, clock: Clock | None = None, *, caps: BudgetCaps = CAPS
) -> MemoryLedger:
    """The ledger that a grant lets begin."""
    return MemoryLedger(
        identity=LedgerIdentity(
            site=grant.site, population=grant.population, ledger_id=grant.ledger_id
        ),
        signing_key=SITE_KEY,
        caps=caps,
        clock=clock or Clock(),
        time_step_s=TIME_STEP_S,
        grant=grant,
    )


def approve(ledger: LedgerBook, study_id: str = "study", *, plan_hash: str = PLAN) -> None:
    """Approve a study until a day after the start."""
    ledger.decide(
        "approve",
        study_id=study_id,
        plan_hash=plan_hash,
        expires=START + timedelta(days=1),
        decided_by="dr.weber",
        statement="checked with the data-protection officer",
    )


def statistics_spec(
    round_id: int = 0, *, study_id: str = "study", noise_multiplier: float = 20.0
) -> ReleaseSpec:
    """A noised statistic of sensitivity 100."""
    return ReleaseSpec(
        study_id=study_id,
        plan_hash=PLAN,
        round_id=round_id,
        purpose="statistics",
        mechanism=DISCRETE_GAUSSIAN,
        event=GaussianEvent(noise_multiplier),
        parameters={"l2_sensitivity": 100.0, "std": 100.0 * noise_multiplier},
    )


def training_spec(
    round_id: int = 0, *, chunk: int = 0, study_id: str = "study", steps: int = 20
) -> ReleaseSpec:
    """A chunk of DP-SGD steps."""
    return ReleaseSpec(
        study_id=study_id,
        plan_hash=PLAN,
        round_id=round_id,
        purpose="training",
        mechanism=DP_SGD,
        event=DpSgdEvent(noise_multiplier=1.0, sampling_probability=0.02, steps=steps),
        parameters={
            "l2_clip_norm": 1.0,
            "expected_units": 20.0,
            "noise": "discrete_gaussian",
        },
        chunk=chunk,
    )


def sample_ledger() -> MemoryLedger:
    """Every kind of entry but a restart: two studies, commits, a crash, a renewed key, and more."""
    clock = Clock()
    ledger = memory_ledger(clock)
    approve(ledger)
    clock.advance(60)
    ledger.commit(ledger.reserve(statistics_spec()), b"noised statistics")
    clock.advance(60)
    ledger.reserve(training_spec())
    clock.advance(60)
    ledger.commit(ledger.reserve(training_spec()), b"noised weights")
    ledger.renew_key(NEW_KEY, decided_by="dr.weber")
    approve(ledger, "second", plan_hash=PLAN)
    ledger.reserve(statistics_spec(study_id="second", noise_multiplier=30.0))
    ledger.reserve(statistics_spec(study_id="second", noise_multiplier=31.0))
    clock.advance(60)
    ledger.decide(
        "withdraw",
        study_id="second",
        plan_hash=PLAN,
        expires=START + timedelta(days=1),
        decided_by="dr.weber",
    )
    return ledger
