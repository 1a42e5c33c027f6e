"""A site's ledger: reserve before a record is touched, commit after, and only then release.

`LedgerBook` is that, whatever keeps the entries: `memory`, or the site's file.
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import datetime
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.events import PrivacyEvent
from lada_secure.privacy.accounting.fields import (
    check_hash,
    check_name,
    check_person,
    public_hex,
)
from lada_secure.privacy.ledger.entries import (
    MAX_STATEMENT,
    SALT_BYTES,
    CommitEntry,
    Decision,
    DecisionEntry,
    Entry,
    FirstEntry,
    KeyEntry,
    LedgerIdentity,
    ReserveEntry,
    RestartEntry,
    ResumeEntry,
    StartEntry,
    commit_to_output,
    sign_entry,
    sign_with_new_key,
)
from lada_secure.privacy.ledger.promises import BudgetPromise, PromisedBudget
from lada_secure.privacy.ledger.proposals import propose_reserve
from lada_secure.privacy.ledger.reader import (
    KeptOutput,
    LedgerTransaction,
    ReadLedger,
    checked_output,
)
from lada_secure.privacy.ledger.restart import RestartGrant
from lada_secure.privacy.ledger.terms import BudgetCaps, ReleaseSpec, Reservation
from lada_secure.privacy.ledger.times import LedgerClock, Moment, format_time
from lada_secure.privacy.released import Released, post_process, released_output

T = TypeVar("T")

MAX_OUTPUT_BYTES = 2**28


class LedgerBook(ReadLedger):
    """A site's ledger as the mechanisms see it, on top of exclusive transactions.

    All that keep one pass one conformance suite. `LedgerError` is raised where the ledger forbids
    what is asked, too.

    Args:
        identity: whose ledger it is.
        signing_key: the site's Ed25519 key, the one that is in force in the ledger.
        caps: the site's own policy.
        clock: the current time with a zone. time_step_s: see `LedgerClock`.
    Attributes:
        started_now: whether this very object began the ledger, with the whole budget; tell the
            people at the site.
    """

    started_now: bool

    def __init__(
        self,
        *,
        identity: LedgerIdentity,
        signing_key: Ed25519PrivateKey,
        caps: BudgetCaps,
        clock: Callable[[], datetime],
        time_step_s: int,
    ) -> None:
        self.identity = identity
        self._signing_key = signing_key
        self._caps = caps
        self._clock = LedgerClock(read=clock, time_step_s=time_step_s)

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[LedgerTransaction]:
        """Exclusive among all threads and processes; durable once it is left without an error."""

    def release(
        self,
        spec: ReleaseSpec,
        *,
        compute: Callable[[Reservation], T],
        encode: Callable[[T], bytes],
        decode: Callable[[bytes], T],
    ) -> Released[T]:
        """Reserve, compute, commit, and only then hand out the value.

        The value comes from the committed bytes, so what is sent later is what the ledger
        holds. After a crash the same call resumes its reservation (nothing was committed,
        nothing left) or returns the committed value without touching a record.

        Args:
            compute: reads the records against the reservation that it is given, and adds the
                noise that `spec.event` states; the caller ensures that it does. Not called where
                an output is stored.
            encode, decode: the value to bytes and back.
        """
        paid = self.reserve(spec)
        output = encode(compute(paid)) if paid.stored_output is None else paid.stored_output
        return post_process(self.commit(paid, output), decode)

    def reserve(self, spec: ReleaseSpec) -> Reservation:
        """Spend, before any record is touched.

        A key whose output is committed spends nothing and returns that output. A key with a
        reservation for this very release, but without an output, spends nothing either: the
        ledger gets a `resume` entry and the same reservation is returned. Everything else is a
        new reservation and is paid for, whatever became of earlier ones; what was reserved is
        never given back.

        Why resuming is free: a reservation pays for one output of one mechanism, and only a
        committed output can become a `Released`. Nothing of the earlier tries was committed, so
        one output leaves in all, whose noise is independent of theirs. It would break where
        something else of an earlier try left the site (a log, an error text, a precise time);
        where whether a try fails depends on what the records hold or on the noise that was
        drawn, or somebody ends tries until an output pleases, because the output is then a
        chosen one and a `resume` says something about the records; and where an uncommitted
        output is sent. Whoever computes on records upholds the first two: each step on a record
        is total, and a failure is the machine's.

        Raises: PrivacyBudgetExceeded: it would pass the study's or the total cap, or take what
            another study was promised; nothing was spent. LedgerError: no approved and unexpired
            plan, or the key was committed with another mechanism.
        """
        with self._transaction() as ledger:
            now = self._now(ledger)
            proposed = propose_reserve(
                ledger.replay, spec, caps=self._caps, now=now, promises=ledger.promises()
            )
            if isinstance(proposed, ReserveEntry):
                entry = self._write(ledger, proposed, now=now)
                return Reservation(entry=entry, entry_hash=entry.entry_hash, stored_output=None)
            stored = None
            if isinstance(proposed, ResumeEntry):
                self._write(ledger, proposed, now=now)
            else:
                stored = checked_output(ledger, proposed)
            return Reservation(
                entry=ledger.replay.reserved[proposed.reserve_hash],
                entry_hash=proposed.reserve_hash,
                stored_output=stored,
            )

    def promise(
        self,
        events: Sequence[PrivacyEvent],
        *,
        study_id: str,
        plan_hash: str,
        expires: datetime,
    ) -> None:
        """Promise a study everything that its whole plan costs; nothing is spent by it.

        Looked at and noted in one transaction: of two studies that do not fit together, whichever
        process comes second is refused. A plan that is promised again has one promise. The promise
        ends by `end_promise`, when the plan expires, and by a later decision against the study.

        Args: events: of the whole plan, with what it has spent already.
        Raises: PrivacyBudgetExceeded: it does not fit beside what is spent and promised.
        """
        with self._transaction() as ledger:
            now = self._now(ledger)
            promise = BudgetPromise(
                study_id=study_id,
                plan_hash=plan_hash,
                expires=format_time(expires),
                made_at=ledger.replay.length,
                target_delta=self._caps.target_delta,
                events=tuple(events),
            )
            found = PromisedBudget(replay=ledger.replay, kept=ledger.promises(), now=now.precise)
            found.check_whole(promise, caps=self._caps)
            ledger.put_promise(promise)

    def end_promise(self, plan_hash: str) -> None:
        """The study is over here: what it has not reserved is free for others."""
        with self._transaction() as ledger:
            ledger.end_promise(plan_hash)

    def keep(self, paid: Reservation, output: bytes) -> CommitEntry:
        """Store an output and its commit entry in one transaction; `commit` calls this.

        Keeping the same bytes for the same reservation again changes nothing.

        Raises: LedgerError: unknown reservation, no approval, or the key has another output.
            ParameterError: output empty or above 256 MiB.
        """
        if not 0 < len(output) <= MAX_OUTPUT_BYTES:
            raise ParameterError(
                f"output: expected 1 to {MAX_OUTPUT_BYTES} bytes, got {len(output)}"
            )
        with self._transaction() as ledger:
            replay = ledger.replay
            reserved = replay.reserved.get(paid.entry_hash)
            if reserved is None:
                raise LedgerError("commit: this ledger holds no such reservation")
            where = f"commit for {reserved.key}"
            earlier = replay.commits.get(reserved.key)
            if earlier is not None:
                same = earlier.reserve_hash == paid.entry_hash
                if same and checked_output(ledger, earlier) == output:
                    return earlier
                raise LedgerError(
                    f"{where}: entry {earlier.index} committed another output already; send that "
                    "one (`stored_output`) and drop this one"
                )
            now = self._now(ledger)
            replay.require_approval(reserved.study_id, reserved.plan_hash, now.precise, where=where)
            kept = KeptOutput(payload=output, salt=secrets.token_bytes(SALT_BYTES))
            proposed = CommitEntry(
                **replay.link(replay.tries[paid.entry_hash].time),
                **asdict(reserved.key),
                plan_hash=reserved.plan_hash,
                reserve_hash=paid.entry_hash,
                output_commitment=commit_to_output(output, salt=kept.salt),
            )
            return self._write(ledger, proposed, kept, now=now)

    def commit(self, paid: Reservation, output: bytes) -> Released[bytes]:
        """Store the noised output, and only then hand it out as something that may leave.

        Args: paid: of `reserve`. output: 1 byte to 256 MiB; the caller ensures that it carries the
            noise that the reservation states.
        Raises: LedgerError: see `keep`.
        """
        return released_output(
            output,
            keep=lambda: self.keep(paid, output),
            paid_by=paid.entry_hash,
            label=paid.entry.purpose,
        )

    def decide(
        self,
        decision: Decision,
        *,
        study_id: str,
        plan_hash: str,
        expires: datetime,
        decided_by: str,
        statement: str = "",
        check: Callable[[DecisionEntry | None], None] = lambda _: None,
    ) -> DecisionEntry:
        """Record that the site approves, refuses or withdraws from a plan.

        Only a study whose latest decision is an unexpired approval can reserve or commit.

        Args: check: is shown the study's latest decision while nobody else can write, and raises
            where this one may not follow it.
        Raises: LedgerError: withdrawing what is not approved, approving an expired plan.
            ParameterError: a name or the statement has a wrong form. And whatever `check` raises.
        """
        if len(statement) > MAX_STATEMENT:
            raise ParameterError(
                f"statement: expected at most {MAX_STATEMENT} characters, got {len(statement)}"
            )
        with self._transaction() as ledger:
            check(ledger.replay.decisions.get(study_id))
            now = self._now(ledger)
            proposed = DecisionEntry(
                **ledger.replay.link(now.coarse),
                study_id=check_name("study_id", study_id),
                plan_hash=check_hash("plan_hash", plan_hash),
                decision=decision,
                expires=format_time(expires),
                decided_by=check_person("decided_by", decided_by),
                # Half a surrogate pair, as in a file name that is no text, is in no JSON.
                statement=statement.encode("utf-8", "replace").decode("utf-8"),
            )
            where = f"{decision} study {study_id}"
            ledger.replay.require_decision(proposed, now.precise, where=where)
            return self._write(ledger, proposed, now=now)

    def renew_key(self, new_key: Ed25519PrivateKey, *, decided_by: str) -> KeyEntry:
        """Continue the ledger with another signing key; from here on it signs for this object.

        Args: decided_by: the person at the site.
        Raises: LedgerError: it is the key that is in force already.
        """
        with self._transaction() as ledger:
            now = self._now(ledger)
            proposed = KeyEntry(
                **ledger.replay.link(now.coarse),
                new_public_key=public_hex(new_key),
                decided_by=check_name("decided_by", decided_by),
                new_signature="",
            )
            entry = self._write(ledger, sign_with_new_key(proposed, new_key), now=now)
        self._signing_key = new_key
        return entry

    def _now(self, ledger: LedgerTransaction) -> Moment:
        return self._clock.moment(last_entry=ledger.replay.last_time, last_write=ledger.last_write)

    def _write(
        self,
        ledger: LedgerTransaction,
        proposed: Entry,
        output: KeptOutput | None = None,
        *,
        now: Moment,
    ) -> Entry:
        """Sign an entry and add it; with another key than the one in force, refuse."""
        ledger.replay.require_key(public_hex(self._signing_key))
        entry = sign_entry(proposed, self._signing_key)
        ledger.append(entry, output, written=now.precise)
        return entry


def begin_ledger(
    ledger: LedgerTransaction,
    *,
    signing_key: Ed25519PrivateKey,
    clock: LedgerClock,
    grant: RestartGrant | None,
) -> None:
    """Write the first entry into an empty ledger: a start, or the restart that was granted.

    Raises: LedgerError: the grant is for another key.
    """
    now = clock.moment(last_entry=None, last_write=None)
    public_key = public_hex(signing_key)
    link = ledger.replay.link(now.coarse)
    first: FirstEntry
    if grant is None:
        ledger_id = ledger.replay.identity.ledger_id
        first = StartEntry(**link, ledger_id=ledger_id, public_key=public_key)
    elif grant.public_key == public_key:
        first = RestartEntry(**link, grant=grant)
    else:
        raise LedgerError(
            f"restart: it was granted to the key {grant.public_key[:12]}..., the signing key given "
            f"is {public_key[:12]}...; put that identity back or ask for another grant"
        )
    ledger.append(sign_entry(first, signing_key), None, written=now.precise)
