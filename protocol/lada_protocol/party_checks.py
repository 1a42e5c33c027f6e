"""What `lada check` looks at of every party alike: state folder, roster, identity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from lada_protocol.identity.roster import Roster
from lada_protocol.party_files import PartySettings
from lada_protocol.plan import StudyPlan, parse_plan
from lada_secure.check.running import Found, fine
from lada_secure.errors import ParameterError, PeerError
from lada_secure.storage.state_folder import check_state_folder
from lada_secure.storage.whole_files import read_file

_HASH_SHOWN: Final = 16


def state_found(settings: PartySettings, *, role: str) -> Found:
    """Whose the state folder is; one that is not there yet can be made.

    Raises: ParameterError: another party's, of another version, or no place for a folder.
    """
    folder = settings.state_dir
    if check_state_folder(folder, party=settings.party, role=role):
        return fine(f"{folder}: of {role} {settings.party}", folder=str(folder), begun=True)
    check_writable(folder, key="state_dir")
    when = "is there, of nobody yet" if folder.is_dir() else "is made at the first run"
    return fine(f"{folder}: it {when}", folder=str(folder), begun=False)


def check_writable(folder: Path, *, key: str) -> None:
    """Check that a folder can be written, or made, without doing either.

    Raises: ParameterError: a file stands in its place, or its parent does not let us.
    """
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise ParameterError(f"{key}: {there} is no folder; name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ParameterError(
            f"{key}: {there} cannot be written to by this user; name another place, or let it"
        )


def roster_found(roster: Roster, *, pinned: bool) -> Found:
    """Who takes part. pinned: whether it is the roster whose hash this party has agreed on."""
    sites = ", ".join(one.id for one in roster.sites)
    how = "as pinned" if pinned else "compare it with the other parties"
    return fine(
        f"{len(roster.parties)} parties: coordinator {roster.coordinator.id}, auditor "
        f"{roster.auditor.id}, sites {sites}; hash {roster.hash[:_HASH_SHOWN]}..., {how}",
        parties=[one.id for one in roster.parties],
        sha256=roster.hash,
    )


def identity_found(settings: PartySettings, roster: Roster | None) -> Found:
    """Certificates and keys, and that the roster lists them, where that could be read.

    Raises: ParameterError: missing, expired, another party's, or not those of the roster.
    """
    credentials = settings.credentials()
    if roster is not None:
        credentials.check_roster(roster)
    until = min(
        credentials.tls_certificate.not_valid_after_utc,
        credentials.signing_certificate.not_valid_after_utc,
    )
    listed = "" if roster is None else ", as the roster lists them"
    return fine(
        f"{settings.identity}: keys of {credentials.name.role} {credentials.name.id}{listed}, "
        f"valid until {until:%Y-%m-%d}",
        party=credentials.name.id,
        valid_until=until.isoformat(),
    )


def read_plan(path: Path) -> StudyPlan:
    """A study plan in a file. Raises: ParameterError: unreadable, or no plan."""
    try:
        return parse_plan(read_file(path, what="the plan "))
    except PeerError as error:
        raise ParameterError(f"{path}: not a study plan: {error}") from error
