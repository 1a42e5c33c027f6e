"""What a release needs next of a ledger: its stored output, another try, or a payment.

Nothing is changed here. What the replay would refuse when the entry is appended is refused here as
well, with the caller's words and the precise clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from lada_secure.errors import LedgerError, PrivacyBudgetExceeded
from lada_secure.privacy.ledger.entries import CommitEntry, ReserveEntry, ResumeEntry
from lada_secure.privacy.ledger.promises import BudgetPromise, PromisedBudget
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.terms import BudgetCaps, ReleaseSpec
from lada_secure.privacy.ledger.times import Moment


def propose_reserve(
    replay: LedgerReplay,
    spec: ReleaseSpec,
    *,
    caps: BudgetCaps,
    now: Moment,
    promises: Sequence[BudgetPromise] = (),
) -> ReserveEntry | ResumeEntry | CommitEntry:
    """What a release needs next; `LedgerBook.reserve` says why a resumption is free.

    Args: promises: what this site has promised to running studies, see `promises`.

    Returns, unsigned: the key's commit entry if it has one; else a resume entry if the key has a
        reservation for this very release; else a reserve entry, which is paid for.
    Raises: PrivacyBudgetExceeded: over a cap, or it would take what another study was promised.
        LedgerError: not approved, expired, or the key was
        committed with another mechanism.
    """
    where = f"reserve for {spec.key}"
    replay.require_approval(spec.study_id, spec.plan_hash, now.precise, where=where)
    commit = replay.commits.get(spec.key)
    if commit is not None:
        if _asked(replay.reserved[commit.reserve_hash]) == _asked(spec):
            return commit
        raise LedgerError(
            f"{where}: entry {commit.index} committed an output for it with another plan, "
            "mechanism or event; use another round, purpose or chunk"
        )
    for reserve_hash in reversed(replay.reservations(spec.key)):
        if _asked(replay.reserved[reserve_hash]) == _asked(spec):
            return ResumeEntry(
                **replay.link(now.coarse),
                study_id=spec.study_id,
                plan_hash=spec.plan_hash,
                reserve_hash=reserve_hash,
                attempt=replay.resumes[reserve_hash] + 1,
            )
    promised = PromisedBudget(replay=replay, kept=promises, now=now.precise)
    promised.check_release(spec, caps=caps, where=where)
    return _paid_reserve(replay, spec, caps=caps, now=now, where=where)


def _asked(release: ReleaseSpec | ReserveEntry) -> dict[str, Any]:
    """What was asked for, by the names of its fields: the same for this very release alone."""
    return {field.name: getattr(release, field.name) for field in fields(ReleaseSpec)}


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
    return ReserveEntry(
        **(replay.link(now.coarse) | _asked(spec) | costs),
        attempt=len(replay.reservations(spec.key)),
        target_delta=delta,
        total_cap=caps.total_epsilon,
        study_cap=study_cap,
    )
