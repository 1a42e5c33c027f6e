"""The next entry of a ledger, unsigned: what a store signs and appends.

Every function looks at a replay and changes nothing. What the replay would refuse when the entry
is appended is refused here as well, with the caller's words and the precise clock.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime

from lada_secure.errors import LedgerError, ParameterError, PrivacyBudgetExceeded
from lada_secure.privacy.accounting.fields import check_hash, check_name
from lada_secure.privacy.ledger.entries import (
    MAX_STATEMENT,
    CommitEntry,
    Decision,
    DecisionEntry,
    ReserveEntry,
    RestartEntry,
    ResumeEntry,
    StartEntry,
    commit_to_output,
)
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.restart import RestartGrant
from lada_secure.privacy.ledger.terms import BudgetCaps, ReleaseSpec, Reservation
from lada_secure.privacy.ledger.times import Moment, format_time

MAX_OUTPUT_BYTES = 2**28


def propose_first(
    replay: LedgerReplay, *, public_key: str, grant: RestartGrant | None, now: Moment
) -> StartEntry | RestartEntry:
    """The first entry: a start, or the restart that was granted.

    Args: public_key: of the site that signs it, hex.
    Raises: LedgerError: the grant is for another key.
    """
    link = replay.link(now.coarse)
    if grant is None:
        return StartEntry(**link, ledger_id=replay.identity.ledger_id, public_key=public_key)
    if grant.public_key != public_key:
        raise LedgerError(
            f"restart: it was granted to the key {grant.public_key[:12]}..., the signing key given "
            f"is {public_key[:12]}...; put that identity back or ask for another grant"
        )
    return RestartEntry(**link, grant=grant)


def propose_decision(
    replay: LedgerReplay,
    decision: Decision,
    *,
    study_id: str,
    plan_hash: str,
    expires: datetime,
    decided_by: str,
    statement: str,
    now: Moment,
) -> DecisionEntry:
    """The entry for a decision.

    Raises: LedgerError: withdrawing what is not approved, approving an expired plan.
        ParameterError: a name or the statement has a wrong form.
    """
    if len(statement) > MAX_STATEMENT:
        raise ParameterError(
            f"statement: expected at most {MAX_STATEMENT} characters, got {len(statement)}"
        )
    entry = DecisionEntry(
        **replay.link(now.coarse),
        study_id=check_name("study_id", study_id),
        plan_hash=check_hash("plan_hash", plan_hash),
        decision=decision,
        expires=format_time(expires),
        decided_by=check_name("decided_by", decided_by),
        statement=statement,
    )
    replay.require_decision(entry, now.precise, where=f"{decision} study {study_id}")
    return entry


def propose_reserve(
    replay: LedgerReplay, spec: ReleaseSpec, *, caps: BudgetCaps, now: Moment
) -> ReserveEntry | ResumeEntry | CommitEntry:
    """What a release needs next; `LedgerBook.reserve` says why a resumption is free.

    Returns: the key's commit entry if it has one; else a resume entry if the key has a
        reservation for this very release; else a reserve entry, which is paid for.
    Raises: PrivacyBudgetExceeded: over a cap. LedgerError: not approved, expired, or the key was
        committed with another mechanism.
    """
    where = f"reserve for {spec.key}"
    replay.require_approval(spec.study_id, spec.plan_hash, now.precise, where=where)
    commit = replay.commits.get(spec.key)
    if commit is not None:
        if _is_for(replay, commit.reserve_hash, spec):
            return commit
        raise LedgerError(
            f"{where}: entry {commit.index} committed an output for it with another plan, "
            "mechanism or event; use another round, purpose or chunk"
        )
    for reserve_hash in reversed(replay.reservations(spec.key)):
        if _is_for(replay, reserve_hash, spec):
            return ResumeEntry(
                **replay.link(now.coarse),
                study_id=spec.study_id,
                plan_hash=spec.plan_hash,
                reserve_hash=reserve_hash,
                attempt=replay.resumes[reserve_hash] + 1,
            )
    return _paid_reserve(replay, spec, caps=caps, now=now, where=where)


def _is_for(replay: LedgerReplay, reserve_hash: str, spec: ReleaseSpec) -> bool:
    """Whether a reservation of the spec's key was made for this very release."""
    paid = replay.reserved[reserve_hash]
    return (
        paid.plan_hash == spec.plan_hash
        and paid.mechanism == spec.mechanism
        and dict(paid.parameters) == dict(spec.parameters)
        and paid.event == spec.event
        and paid.unit == spec.unit
    )


def _paid_reserve(
    replay: LedgerReplay, spec: ReleaseSpec, *, caps: BudgetCaps, now: Moment, where: str
) -> ReserveEntry:
    delta, study_cap = caps.target_delta, caps.for_study(spec.study_id)
    costs = replay.spending.after(spec.event, spec.study_id, delta)
    for scope, epsilon, cap in (
        (f"study {spec.study_id}", costs["study_epsilon_after"], study_cap),
        ("all studies together", costs["epsilon_after"], caps.total_epsilon),
    ):
        # Not `epsilon > cap`: a NaN must refuse too.
        if not epsilon <= cap:
            raise PrivacyBudgetExceeded(
                f"{where}: epsilon of {scope} would be {epsilon:.6g} at delta {delta:g}, "
                f"the site's cap is {cap:.6g}; nothing was spent and no record was read. "
                "Plan fewer releases or more noise, or let the site raise its cap"
            )
    asked = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return ReserveEntry(
        **(replay.link(now.coarse) | asked | costs),
        attempt=len(replay.reservations(spec.key)),
        target_delta=delta,
        total_cap=caps.total_epsilon,
        study_cap=study_cap,
    )


def propose_commit(
    replay: LedgerReplay, reservation: Reservation, output: bytes, *, salt: bytes, now: Moment
) -> CommitEntry:
    """The entry that commits an output.

    Raises: LedgerError: unknown reservation, the key has an output, no approval. ParameterError:
        output empty or above 256 MiB, or a salt of the wrong length.
    """
    if not 0 < len(output) <= MAX_OUTPUT_BYTES:
        raise ParameterError(f"output: expected 1 to {MAX_OUTPUT_BYTES} bytes, got {len(output)}")
    paid = replay.reserved.get(reservation.entry_hash)
    if paid is None:
        raise LedgerError("commit: this ledger holds no such reservation")
    where = f"commit for {paid.key}"
    earlier = replay.commits.get(paid.key)
    if earlier is not None:
        raise LedgerError(
            f"{where}: entry {earlier.index} committed another output already; send that one "
            "(`stored_output`) and drop this one"
        )
    replay.require_approval(paid.study_id, paid.plan_hash, now.precise, where=where)
    return CommitEntry(
        **replay.link(replay.tries[reservation.entry_hash].time),
        study_id=paid.study_id,
        plan_hash=paid.plan_hash,
        round_id=paid.round_id,
        purpose=paid.purpose,
        chunk=paid.chunk,
        reserve_hash=reservation.entry_hash,
        output_commitment=commit_to_output(output, salt=salt),
    )
