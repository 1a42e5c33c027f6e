"""What `lada check` looks at of every party alike: state folder, disk, roster, identity."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from lada_protocol.identity.certificates import MAX_REVOCATION_BYTES, parse_revocations
from lada_protocol.identity.credentials import Credentials, IdentityFile
from lada_protocol.identity.roster import Roster
from lada_protocol.party_files import PartySettings
from lada_protocol.plan import StudyPlan, parse_plan
from lada_secure.check.running import Found, fault, fine, warn
from lada_secure.errors import ParameterError, PeerError
from lada_secure.storage.disk_trial import try_disk
from lada_secure.storage.identity_folder import IdentityFolder
from lada_secure.storage.state_folder import check_state_folder
from lada_secure.storage.whole_files import read_file

_HASH_SHOWN: Final = 16
# Certificates that end so soon may end within a study.
_SOON: Final = timedelta(days=7)
# A ledger, adapters and messages of a small study; and of any one that we have seen.
_LEAST_FREE_BYTES: Final = 64 << 20
_AMPLE_FREE_BYTES: Final = 1 << 30


def state_found(settings: PartySettings, *, role: str) -> Found:
    """Whose the state folder is; one that is not there yet can be made.

    Raises: ParameterError: another party's, of another version, or no place for a folder.
    """
    folder = settings.state_dir
    check_writable(folder, key="state_dir")
    if check_state_folder(folder, party=settings.party, role=role):
        return fine(f"{folder}: of {role} {settings.party}", folder=str(folder), begun=True)
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


def roster_found(roster: Roster, *, pinned: bool, min_cohort: int = 0) -> Found:
    """Who takes part.

    Args: pinned: whether it is the roster whose hash this party has agreed on. min_cohort: of how
        many sites this party asks a study to be.
    """
    sites = ", ".join(one.id for one in roster.sites)
    if len(roster.sites) < min_cohort:
        return fault(
            f"min_cohort is {min_cohort}, and the roster has {len(roster.sites)} sites, so that no "
            f"plan could be accepted: {sites}. Lower min_cohort, or take part with more sites"
        )
    how = "as pinned" if pinned else "compare it with the other parties"
    return fine(
        f"{len(roster.parties)} parties: coordinator {roster.coordinator.id}, auditor "
        f"{roster.auditor.id}, sites {sites}; hash {roster.hash[:_HASH_SHOWN]}..., {how}",
        parties=[one.id for one in roster.parties],
        sha256=roster.hash,
    )


def disk_found(settings: PartySettings, *, work: str | None = None) -> Found:
    """Room, writing and locks where the state folder is or will be; see `try_disk`.

    Args: work: of a party that works in its folder beside other processes, see `is_held`.
    Raises: ParameterError: full, read-only, or without locks.
    """
    folder = settings.state_dir
    trial = try_disk(folder, key="state_dir", work=work)
    free = trial.free_bytes
    facts: dict[str, JsonValue] = {"free_bytes": free, "in_use": trial.in_use}
    if free < _LEAST_FREE_BYTES:
        raise ParameterError(
            f"state_dir: {free / 2**20:,.0f} MiB are free for {folder}, a study needs at least "
            f"{_LEAST_FREE_BYTES / 2**20:,.0f} MiB; free some, or name another place"
        )
    if trial.in_use:
        return warn(
            f"{folder}: a process of this party works in it now; a second one would be refused. "
            "Stop it before you change settings, or let it go on",
            **facts,
        )
    if free < _AMPLE_FREE_BYTES:
        return warn(
            f"{folder}: {free / 2**20:,.0f} MiB are free; a study of many rounds may need more "
            "than that. Free some, or name another place",
            **facts,
        )
    how = "it can be written and locked" if trial.tried else "writing and locks show at the run"
    return fine(f"{free / 2**30:,.1f} GiB are free; {how}", **facts)


def identity_found(credentials: Credentials, roster: Roster | None, *, folder: Path) -> Found:
    """Certificates and keys, that the roster lists them, and that the CA has not revoked them.

    Args: roster: None where it could not be read. folder: where they lie.
    Raises: ParameterError: not those of the roster, or revoked; a list of what was revoked that
      cannot be read.
    """
    if roster is not None:
        credentials.check_roster(roster)
    _check_revoked(credentials, folder)
    until = min(
        credentials.tls_certificate.not_valid_after_utc,
        credentials.signing_certificate.not_valid_after_utc,
    )
    listed = "" if roster is None else ", as the roster lists them"
    said = (
        f"{folder}: keys of {credentials.name.role} {credentials.name.id}{listed}, valid until "
        f"{until:%Y-%m-%d}"
    )
    facts: dict[str, JsonValue] = {
        "party": credentials.name.id,
        "valid_until": until.isoformat(),
    }
    if until - datetime.now(UTC) < _SOON:
        return warn(f"{said}; renew them before a study, with `lada ca renew`", **facts)
    keys = (IdentityFile.TLS_KEY, IdentityFile.SIGNING_KEY)
    bare = [str(one) for one in keys if IdentityFolder(folder).open_to_others(one)]
    if bare:
        return warn(
            f"{said}; every user of this machine may read {' and '.join(bare)}: take that away "
            "(chmod 600), and take new keys if somebody may have",
            **facts,
        )
    return fine(said, **facts)


def _check_revoked(credentials: Credentials, folder: Path) -> None:
    identity, file = IdentityFolder(folder), IdentityFile.REVOCATIONS
    if identity.stamp(file) is None:
        return
    try:
        found = parse_revocations(identity.read(file, MAX_REVOCATION_BYTES), ca=credentials.ca)
        for one in (credentials.tls_certificate, credentials.signing_certificate):
            found.check(one, holder=credentials.name.id)
    except PeerError as error:
        raise ParameterError(f"{folder / file}: {error}") from error


def read_plan(path: Path) -> StudyPlan:
    """A study plan in a file. Raises: ParameterError: unreadable, or no plan."""
    try:
        return parse_plan(read_file(path, what="the plan "))
    except PeerError as error:
        raise ParameterError(
            f"{path}: not a study plan: {error}; expected the plan.json of a study folder"
        ) from error
