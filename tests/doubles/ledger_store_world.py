"""One site's ledger file for store tests, and what spawned processes do with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_clients.site.ledger.store import SqliteLedger
from lada_secure.errors import PrivacyBudgetExceeded
from lada_secure.privacy.accounting.events import GaussianEvent
from lada_secure.privacy.ledger.carried_budget import grant_restart
from lada_secure.privacy.ledger.entries import parse_ledger_lines
from lada_secure.privacy.ledger.restart import RestartGrant, check_grant
from lada_secure.privacy.ledger.terms import DISCRETE_GAUSSIAN, BudgetCaps, ReleaseSpec, Reservation

SITE_KEY = Ed25519PrivateKey.from_private_bytes(b"site key for tests only, 32 byte")
AUDITOR_KEY = Ed25519PrivateKey.from_private_bytes(b"auditor key for tests, 32 bytes.")
NEW_KEY = Ed25519PrivateKey.from_private_bytes(b"the site's renewed key, 32 byte.")
PUBLIC = SITE_KEY.public_key().public_bytes_raw()
AUDITOR = AUDITOR_KEY.public_key().public_bytes_raw()
PLAN = "a" * 64
TIME_STEP_S = 60
CAPS = BudgetCaps(target_delta=1e-6, total_epsilon=3.0, study_epsilon=3.0)
NOISE = 20.0


def now() -> datetime:
    """The clock of the machine."""
    return datetime.now(UTC)


def open_ledger(
    path: Path,
    *,
    site: str = "hospital-a",
    population: str = "patients",
    key: Ed25519PrivateKey = SITE_KEY,
    caps: BudgetCaps = CAPS,
    clock: Callable[[], datetime] = now,
    grant: RestartGrant | None = None,
) -> SqliteLedger:
    """The test site's ledger, or with one name changed somebody else's."""
    return SqliteLedger(
        path,
        site=site,
        population=population,
        signing_key=key,
        caps=caps,
        clock=clock,
        time_step_s=TIME_STEP_S,
        grant=grant,
    )


def approve(ledger: SqliteLedger, study_id: str = "study") -> None:
    """Approve for a day."""
    ledger.decide(
        "approve",
        study_id=study_id,
        plan_hash=PLAN,
        expires=now() + timedelta(days=1),
        decided_by="policy",
    )


def spec(round_id: int = 0, *, study_id: str = "study", noise: float = NOISE) -> ReleaseSpec:
    """A noised statistic."""
    return ReleaseSpec(
        study_id=study_id,
        plan_hash=PLAN,
        round_id=round_id,
        purpose="statistics",
        mechanism=DISCRETE_GAUSSIAN,
        event=GaussianEvent(noise),
        parameters={"l2_sensitivity": 100.0, "std": 100.0 * noise},
    )


def lost_ledger(path: Path) -> bytes:
    """What the auditor has of a ledger whose file is gone."""
    with open_ledger(path) as ledger:
        approve(ledger)
        ledger.commit(ledger.reserve(spec()), b"noised")
        lines = ledger.export_lines()
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()
    return lines


def grant(lines: bytes, *, public_key: bytes = PUBLIC) -> RestartGrant:
    """The auditor's word on what it knows of a ledger."""
    return grant_restart(
        parse_ledger_lines(lines),
        public_key=public_key,
        target_delta=1e-6,
        requested_by="dr.weber",
        auditor="auditor",
        granted_by="ms.okafor",
        signing_key=AUDITOR_KEY,
        time=now(),
    )


def restart(path: Path, granted: RestartGrant, *, auditor_key: bytes = AUDITOR) -> None:
    """Begin the ledger that was granted."""
    check_grant(granted, where="restart", auditor_key=auditor_key)
    open_ledger(path, grant=granted).close()


def hammer(path: str, worker: int) -> None:
    """Reserve until the budget is spent, committing every second time."""
    with open_ledger(Path(path)) as ledger:
        for number in range(10_000):
            try:
                reservation = ledger.reserve(spec(worker * 10_000 + number))
            except PrivacyBudgetExceeded:
                return
            if number % 2:
                ledger.commit(reservation, b"output of %d" % worker)
    raise AssertionError("the cap never refused")


class _Countdown:
    """Kills this process, as kill -9 does, when it is reached the n-th time."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self, *_: object, **__: object) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def release_and_die(path: str, sent: str, steps: int) -> None:
    """Reserve, compute, commit and send one release; die at the n-th step, if it has so many.

    Steps are every SQL statement, every begin, commit and rollback, and the points around
    computing, encoding and sending.
    """
    step = _Countdown(steps)
    ledger = open_ledger(Path(path))
    # Called before every statement: what was done after one is what is there before the next.
    with ledger._file.transaction("BEGIN") as connection:
        connection.set_trace_callback(step)

    def compute(_paid: Reservation) -> bytes:
        step()
        output = os.urandom(16)
        step()
        return output

    def encode(output: bytes) -> bytes:
        step()
        return output

    step()
    released = ledger.release(spec(), compute=compute, encode=encode, decode=bytes)
    step()
    with open(sent, "ab", buffering=0) as wire:
        step()
        wire.write(released.value)
        step()
    ledger.close()
    step()
