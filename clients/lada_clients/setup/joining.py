"""Taking the study's bundle into a party's folder: certificates, roster, and the roster's pin.

Everything is checked before the first byte is written. Each file changes in one step and the pin
comes last, so a folder that was interrupted is refused by every run, and the same command mends it.
"""

from __future__ import annotations

import signal
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lada_clients.setup.party_folder import known_templates, request_file
from lada_protocol.identity.certificates import (
    MAX_CERTIFICATE_BYTES,
    PartyName,
    certificate_fingerprint,
    certificate_pem,
)
from lada_protocol.identity.credentials import IdentityFile, Passphrase, parse_credentials
from lada_protocol.identity.enrolment import (
    MAX_BUNDLE_BYTES,
    MAX_ENROLMENT_BYTES,
    Bundle,
    parse_bundle,
    parse_enrolment,
    roster_fingerprint,
)
from lada_protocol.identity.roster import Roster
from lada_protocol.party_files import PartySettings, read_passphrase, read_settings
from lada_protocol.party_templates import PIN, RoleTemplates, SettingsTemplate
from lada_protocol.settings import parse_settings
from lada_secure.canonical import sha256_hex
from lada_secure.errors import ParameterError, PeerError
from lada_secure.storage.identity_folder import IdentityFolder
from lada_secure.storage.whole_files import read_at_most, read_file, read_if_there, write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """A bundle that fits a folder and is not in place yet.

    replaces: hash of the roster that lies there, where it is another one. files: what to write, in
    order.
    """

    settings: Path
    party: PartyName
    roster: Roster
    replaces: str | None
    files: Mapping[Path, bytes]

    @property
    def fingerprint(self) -> str:
        """Of the roster, to be read to each other."""
        return roster_fingerprint(self.roster.hash)

    @property
    def members(self) -> str:
        """All parties of the roster, in words."""
        return ", ".join(f"{one.role} {one.id}" for one in self.roster.parties)

    def carry_out(self) -> None:
        """Put everything in place. Raises: TransportError: the disk refuses."""
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for path, content in self.files.items():
                # Whoever has closed a file to others finds it closed.
                mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
                write_atomically(path, content, mode=mode)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)


def read_joining(
    folder: Path, bundle_file: Path, *, passphrase: Passphrase | None, now: datetime
) -> Joining:
    """Check a bundle against the folder of an invited party; writes nothing.

    Raises: ParameterError: no folder of `lada init`, another study's bundle, another party's keys
      or role, or a bundle that does not hold together.
    """
    templates, settings_file, settings = _settings_in(folder)
    asked, ca = _asked(folder, settings, templates)
    if not bundle_file.exists():
        raise ParameterError(
            f"{bundle_file}: there is no such bundle. `lada ca admit` writes it once every party "
            "has asked, and says who has not. Nothing was changed"
        )
    try:
        bundle = parse_bundle(read_at_most(bundle_file, MAX_BUNDLE_BYTES, what="the bundle "))
        bundle.check(at=now)
        listed = bundle.roster.party(asked.id)
    except PeerError as error:
        raise ParameterError(f"{bundle_file}: {error}. Nothing was changed") from error
    if certificate_fingerprint(bundle.ca) != ca:
        raise ParameterError(
            f"{bundle_file}: it is of the CA {certificate_fingerprint(bundle.ca)[:16]}..., and "
            f"{asked.id} was invited by {ca[:16]}...; take the bundle of this study"
        )
    if listed.name != asked:
        raise ParameterError(
            f"{bundle_file}: the roster has {listed.uri}, {folder} is of {asked.uri}; take this "
            "party's own folder"
        )
    files = _identity_files(bundle, asked.id)
    secret = passphrase or read_passphrase(settings.passphrase_file)
    _check_keys(settings, files, bundle.roster, passphrase=secret, now=now)
    before = read_if_there(settings.roster)
    roster = bundle.roster.to_bytes()
    writes = {settings.identity / name: content for name, content in files.items()}
    writes[settings.roster] = roster
    if templates.pins is not None:
        path = folder / templates.pins.file
        writes[path] = _pinned(path, templates.pins, bundle.roster.hash)
    return Joining(
        settings=settings_file,
        party=asked,
        roster=bundle.roster,
        replaces=None if before in (None, roster) else sha256_hex(before or b""),
        files=writes,
    )


def _settings_in(folder: Path) -> tuple[RoleTemplates, Path, PartySettings]:
    roles = known_templates().values()
    found = [one for one in roles if (folder / one.settings.file).is_file()]
    if len(found) != 1:
        names = ", ".join(sorted(one.settings.file for one in found or roles))
        what = f"holds {names}, of several parties" if found else f"holds none of {names}"
        raise ParameterError(
            f"{folder}: {what}; expected a folder that `lada init` has made for one party. If it "
            "is half of one, begin anew in another folder, with a new invitation"
        )
    path = folder / found[0].settings.file
    settings = read_settings(path, found[0].settings.model)
    if not isinstance(settings, PartySettings):
        raise ParameterError(f"{path}: not the settings of a party")
    return found[0], path, settings


def _asked(
    folder: Path, settings: PartySettings, templates: RoleTemplates
) -> tuple[PartyName, str]:
    """Whom the folder has asked for certificates for, and the CA that had invited it."""
    path = folder / request_file(settings.party)
    try:
        asked = parse_enrolment(read_at_most(path, MAX_ENROLMENT_BYTES, what="the request "))
    except PeerError as error:
        raise ParameterError(f"{path}: {error}") from error
    if asked.party != PartyName(role=templates.role, id=settings.party):
        raise ParameterError(
            f"{folder / templates.settings.file} is of {templates.role} {settings.party}, its "
            f"request of {asked.party.role} {asked.party.id}; put back the settings that `lada "
            "init` wrote here"
        )
    return asked.party, asked.ca


def _identity_files(bundle: Bundle, party_id: str) -> dict[str, bytes]:
    tls, signing = bundle.certificates[party_id]
    made = {IdentityFile.CA: bundle.ca, IdentityFile.TLS: tls, IdentityFile.SIGNING: signing}
    return {str(name): certificate_pem(one) for name, one in made.items()}


def _check_keys(
    settings: PartySettings,
    files: Mapping[str, bytes],
    roster: Roster,
    *,
    passphrase: Passphrase | None,
    now: datetime,
) -> None:
    """The keys that lie here are those of the bundle's certificates and of the roster."""
    identity = IdentityFolder(settings.identity)

    def read(name: str) -> bytes:
        return files[name] if name in files else identity.read(name, MAX_CERTIFICATE_BYTES)

    credentials = parse_credentials(read, at=now, expected_id=settings.party, passphrase=passphrase)
    credentials.check_roster(roster)


def _pinned(path: Path, template: SettingsTemplate, roster_hash: str) -> bytes:
    """The file as it stands, with another pin."""
    text = read_file(path).decode("utf-8", "surrogateescape")
    changed, count = PIN.subn(rf'\g<1>"{roster_hash}"', text)
    if count != 1:
        raise ParameterError(
            f'{path}: expected one line roster_sha256 = "..." of 64 digits, found {count}; write '
            f'roster_sha256 = "{"0" * 64}" there and run this again'
        )
    raw = changed.encode("utf-8", "surrogateescape")
    parse_settings(raw, template.model, where=str(path))
    return raw
