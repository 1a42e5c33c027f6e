"""What a lost ledger had cost, as far as somebody knows it, and the grant that carries it over."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.errors import LedgerError
from lada_secure.privacy.accounting.accountant import Group, epsilon
from lada_secure.privacy.accounting.events import (
    MAX_PARTS,
    DpSgdEvent,
    GaussianEvent,
    PrivacyEvent,
    composed_event,
    event_parts,
)
from lada_secure.privacy.accounting.fields import check_name
from lada_secure.privacy.ledger.entries import (
    FirstEntry,
    LedgerEntry,
    LedgerIdentity,
    ReserveEntry,
    RestartEntry,
    new_ledger_id,
)
from lada_secure.privacy.ledger.restart import RestartGrant, check_grant
from lada_secure.privacy.ledger.times import format_time


def granted_identity(grant: RestartGrant, *, auditor_key: bytes) -> LedgerIdentity:
    """The identity of the ledger that a grant lets begin.

    Args: auditor_key: the auditor's Ed25519 key, 32 raw bytes, from its certificate.
    Raises: LedgerError: not that auditor's, or changed.
    """
    check_grant(grant, where="restart", auditor_key=auditor_key)
    return LedgerIdentity(site=grant.site, population=grant.population, ledger_id=grant.ledger_id)


def spent_events(entries: Sequence[LedgerEntry]) -> list[PrivacyEvent]:
    """The events of all reservations, before them what an earlier restart had carried over."""
    events: list[PrivacyEvent] = []
    for entry in entries:
        if isinstance(entry, RestartEntry):
            events.extend(entry.grant.events)
        elif isinstance(entry, ReserveEntry):
            events.append(entry.event)
    return events


def merged_event(events: Sequence[PrivacyEvent]) -> PrivacyEvent | None:
    """One event that costs at least what all of them cost together; None for none.

    Equal settings are counted together, which is exact. Where more than 64 different ones are
    left, all Gaussian parts become one of the same total precision, and the DP-SGD parts with
    the most noise become one of the least noise and the highest sampling probability among them,
    which costs more, never less.
    """
    if not events:
        return None
    counts, steps = Counter[float](), Counter[Group]()
    for part in (part for event in events for part in event_parts(event)):
        if isinstance(part, GaussianEvent):
            counts[part.noise_multiplier] += part.count
        else:
            steps[part.noise_multiplier, part.sampling_probability] += part.steps
    gaussian = [GaussianEvent(noise, count=n) for noise, n in sorted(counts.items())]
    sampled = [
        DpSgdEvent(noise_multiplier=noise, sampling_probability=probability, steps=n)
        for (noise, probability), n in steps.items()
    ]
    if len(gaussian) + len(sampled) > MAX_PARTS:
        gaussian = _one_gaussian(gaussian)
        sampled = _fewer(sampled, MAX_PARTS - len(gaussian))
    return composed_event([*gaussian, *sampled])


def _one_gaussian(parts: Sequence[GaussianEvent]) -> list[GaussianEvent]:
    if not parts:
        return []
    precision = math.fsum(one.count / one.noise_multiplier**2 for one in parts)
    # A hair less noise than exact, so that rounding never claims more of it.
    return [GaussianEvent(noise_multiplier=(1 - 1e-12) / math.sqrt(precision))]


def _fewer(parts: Sequence[DpSgdEvent], most: int) -> list[DpSgdEvent]:
    ordered = sorted(parts, key=lambda one: (one.noise_multiplier, one.sampling_probability))
    kept, rest = ordered[: most - 1], ordered[most - 1 :]
    if len(rest) < 2:
        return ordered
    folded = DpSgdEvent(
        noise_multiplier=min(one.noise_multiplier for one in rest),
        sampling_probability=max(one.sampling_probability for one in rest),
        steps=sum(one.steps for one in rest),
    )
    return [*kept, folded]


def grant_restart(
    known: Sequence[LedgerEntry],
    *,
    public_key: bytes,
    target_delta: float,
    requested_by: str,
    auditor: str,
    granted_by: str,
    signing_key: Ed25519PrivateKey,
    time: datetime,
) -> RestartGrant:
    """Let a site begin a ledger in place of the one whose entries are known up to here.

    What the site spent in the lost ledger after the last known entry is not in it; the caller
    has asked.

    Args:
        known: the auditor's verified copy, from the first entry on.
        public_key: the site's Ed25519 key from its certificate, 32 raw bytes.
        target_delta: at which `carried_epsilon` is stated.
        requested_by: the person at the site. auditor: party id. granted_by: the person there.
        signing_key: the auditor's. time: the auditor's clock, with a zone.
    Raises: LedgerError: nothing is known. ParameterError: a name, delta or time is wrong.
    """
    if not known or not isinstance(known[0], FirstEntry):
        raise LedgerError(
            "restart: no entry of the lost ledger is known, so nothing can be carried"
        )
    carried = merged_event(spent_events(known))
    studies = {one.study_id for one in known if isinstance(one, ReserveEntry)}
    if isinstance(known[0], RestartEntry):
        studies.update(known[0].grant.studies)
    grant = RestartGrant(
        site=known[0].site,
        population=known[0].population,
        ledger_id=new_ledger_id(),
        public_key=public_key.hex(),
        previous_ledger_id=known[0].ledger_id,
        previous_index=known[-1].index,
        previous_hash=known[-1].entry_hash,
        carried=carried,
        studies=tuple(sorted(studies)),
        target_delta=float(target_delta),
        carried_epsilon=epsilon([carried] if carried else [], target_delta=target_delta),
        requested_by=check_name("requested_by", requested_by),
        auditor=check_name("auditor", auditor),
        auditor_key="",
        granted_by=check_name("granted_by", granted_by),
        time=format_time(time),
        signature="",
    )
    return grant.signed(signing_key)
