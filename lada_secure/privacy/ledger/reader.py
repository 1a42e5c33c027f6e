"""What a ledger answers to whoever only reads it, and one consistent look at it.

`LedgerTransaction` is what keeps the entries: `memory`, or the site's file.
"""

from __future__ import annotations

import hmac
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from lada_secure.errors import LedgerError
from lada_secure.privacy.ledger.entries import (
    SALT_BYTES,
    CommitEntry,
    DecisionEntry,
    LedgerEntry,
    LedgerIdentity,
    ReleaseKey,
    commit_to_output,
    format_ledger_lines,
)
from lada_secure.privacy.ledger.promises import BudgetPromise, PromisedBudget
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.times import MAX_TIME_STEP_S, LedgerClock, format_time


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptOutput:
    """A committed output and the salt of its commitment; both stay at the site."""

    payload: bytes
    salt: bytes


class LedgerTransaction(Protocol):
    """One consistent look at a ledger; where it is exclusive, what is added to it, all or nothing.

    The clock of the last write is the site's own: it is in no entry and no export.
    """

    @property
    def replay(self) -> LedgerReplay:
        """The state after every entry that is stored, whoever wrote it."""

    @property
    def last_write(self) -> str | None:
        """The precise clock of the last write, or None where it is not known."""

    def output(self, reserve_hash: str) -> KeptOutput | None:
        """The stored output of a reservation, or None."""

    def append(self, entry: LedgerEntry, output: KeptOutput | None, *, written: str) -> None:
        """Add a signed entry, for a commit its output, and keep the precise clock of this write."""

    def promises(self) -> Sequence[BudgetPromise]:
        """What was promised to studies and not ended; the site's own, in no entry and no export."""

    def put_promise(self, promise: BudgetPromise) -> None:
        """Keep a promise in place of the one to the same plan, if there is one."""

    def end_promise(self, plan_hash: str) -> None:
        """Forget the promise to a plan, if there is one."""


class ReadLedger(ABC):
    """What an opened ledger answers without changing anything, and without keeping writers out.

    Every method raises `LedgerError` where the ledger is damaged, and `TransportError` where the
    disk or database failed.

    Attributes: identity: whose ledger it is.
    """

    identity: LedgerIdentity

    @abstractmethod
    def _reading(self) -> AbstractContextManager[LedgerTransaction]:
        """One consistent state to read; nobody waits for it and it waits for nobody."""

    @property
    def public_key(self) -> bytes:
        """The site's key that is in force, 32 raw bytes."""
        with self._reading() as ledger:
            return bytes.fromhex(ledger.replay.public_key)

    def latest_decision(self, study_id: str) -> DecisionEntry | None:
        """The newest decision on a study, whatever its plan; None where there is none."""
        with self._reading() as ledger:
            return ledger.replay.decisions.get(study_id)

    def stored_output(self, key: ReleaseKey) -> bytes | None:
        """The committed output of a key, or None."""
        with self._reading() as ledger:
            commit = ledger.replay.commits.get(key)
            return None if commit is None else checked_output(ledger, commit)

    def entries(self) -> tuple[LedgerEntry, ...]:
        """All entries from the first on."""
        with self._reading() as ledger:
            return tuple(ledger.replay.entries)

    def epsilon_spent(self, target_delta: float, *, study_id: str | None = None) -> float:
        """Epsilon of all reservations, or of one study's, with what a restart carried over."""
        with self._reading() as ledger:
            return ledger.replay.spending.of(study_id).epsilon(target_delta)

    def check_clock(self, now: datetime) -> None:
        """Whether a write at this time would be taken. Raises: LedgerError: it was set back."""
        clock = LedgerClock(read=lambda: now, time_step_s=MAX_TIME_STEP_S)
        with self._reading() as ledger:
            clock.moment(last_entry=ledger.replay.last_time, last_write=ledger.last_write)

    def promised(self, *, now: datetime, besides: str = "") -> tuple[BudgetPromise, ...]:
        """What running studies may still spend, without the plan of the hash `besides`.

        Each promise with the events that were not reserved yet. now: with a zone.
        """
        with self._reading() as ledger:
            found = PromisedBudget(
                replay=ledger.replay, kept=ledger.promises(), now=format_time(now)
            )
            return tuple(
                replace(promise, events=found.outstanding(promise))
                for promise in found.others(besides)
            )

    def export_lines(self) -> bytes:
        """The ledger as canonical JSON Lines, for the auditor."""
        return format_ledger_lines(self.entries())


def checked_output(ledger: LedgerTransaction, commit: CommitEntry) -> bytes:
    kept = ledger.output(commit.reserve_hash)
    if kept is None:
        raise LedgerError(f"entry {commit.index}: its stored output is missing")
    found = len(kept.salt) == SALT_BYTES and commit_to_output(kept.payload, salt=kept.salt)
    if not found or not hmac.compare_digest(found, commit.output_commitment):
        raise LedgerError(
            f"entry {commit.index}: the stored output is not the one that was committed; it was "
            "changed on disk. Restore it from a backup; it is not sent"
        )
    return kept.payload
