"""Granting the restart of a ledger that a site has lost for good, from this auditor's own copy."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from lada_clients.auditor.ledgers import LedgerCopies
from lada_clients.auditor.runner import AuditorSettings
from lada_protocol.party_files import read_roster, read_settings
from lada_secure.errors import ParameterError
from lada_secure.privacy.accounting.fields import check_name
from lada_secure.privacy.ledger import carried_budget
from lada_secure.privacy.ledger.entries import LedgerEntry, ReserveEntry, RestartEntry
from lada_secure.privacy.ledger.restart import RestartGrant
from lada_secure.storage.state_folder import held_state_folder
from lada_secure.storage.whole_files import write_atomically

# Where nothing was ever reserved, nothing is carried over, at any delta.
_DELTA_OF_NOTHING: Final = 1e-6


def grant_restart(
    settings_path: Path, *, site: str, population: str, requested_by: str, by: str, out: Path
) -> RestartGrant:
    """Sign that a site may begin a ledger in place of the one that this auditor has a copy of.

    The new ledger is for the key that the roster of the settings lists for the site.

    Args: requested_by, by: the persons at the site and here. out: a new file for the site.
    Raises: ParameterError: no copy, no such site, a name that does not fit, or `out` is there.
    """
    check_name("--requested-by", requested_by)
    check_name("--by", by)
    if out.exists():
        raise ParameterError(f"--out: {out} is there already; name a new file")
    settings = read_settings(settings_path, AuditorSettings)
    roster = read_roster(settings.roster, pinned=settings.roster_sha256)
    credentials = settings.credentials()
    party = next((one for one in roster.sites if one.id == site), None)
    if party is None:
        known = ", ".join(one.id for one in roster.sites)
        raise ParameterError(f"--site {site}: the roster has {known}")
    with held_state_folder(settings.state_dir, party=settings.party, role="auditor"):
        copies = LedgerCopies(state_dir=settings.state_dir)
        copy = copies.entries(site, population)
        if not copy:
            shown = ", ".join(copies.populations(site)) or "none"
            raise ParameterError(
                f"this auditor has no copy of the ledger of {site}, population {population} "
                f"(copies of this site: {shown}); a ledger that was never shown needs no grant"
            )
        grant = carried_budget.grant_restart(
            copy,
            public_key=bytes.fromhex(party.signing_key),
            target_delta=_delta(copy),
            requested_by=requested_by,
            auditor=settings.party,
            granted_by=by,
            signing_key=credentials.signing_key,
            time=datetime.now(UTC),
        )
        # Noted before it is given away: the site is admitted with it only where it is noted.
        copies.keep_grant(grant)
    write_atomically(out, grant.to_bytes())
    return grant


def _delta(copy: tuple[LedgerEntry, ...]) -> float:
    """The delta that the lost ledger counted at."""
    for entry in reversed(copy):
        if isinstance(entry, ReserveEntry):
            return entry.target_delta
    first = copy[0]
    return first.grant.target_delta if isinstance(first, RestartEntry) else _DELTA_OF_NOTHING
