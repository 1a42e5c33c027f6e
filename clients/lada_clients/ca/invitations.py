"""Whom a study CA has invited, and admitting those who ask: requests in, one bundle out.

The CA's folder keeps a file per invited party in `invitations/`. It holds the public half of the
invitation's key, so whoever reads the folder can admit nobody, and once the invitation was used the
keys that it was used for: the same request may come twice, another one is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

from cryptography import x509
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lada_clients.ca.authority import ISSUED, CaFolder, issue_certificates, period_of
from lada_protocol.identity.certificates import (
    PartyName,
    certificate_fingerprint,
    key_fingerprint,
    public_key_fingerprint,
)
from lada_protocol.identity.credentials import Passphrase
from lada_protocol.identity.enrolment import (
    INVITATION_KEY_BYTES,
    LATEST_S,
    MAX_ENROLMENT_BYTES,
    Bundle,
    EnrolmentRequest,
    Invitation,
    parse_enrolment,
)
from lada_protocol.identity.roster import Hexadecimal, Roster, party_of_certificates
from lada_protocol.kinds import Role
from lada_protocol.wire.limits import split_address
from lada_secure.canonical import canonical_json, parse_canonical_json, sha256_hex
from lada_secure.errors import ParameterError, PeerError
from lada_secure.storage.whole_files import read_at_most, write_atomically

INVITATIONS: Final = "invitations"
BUNDLE: Final = "bundle.json"
MAX_DAYS_TO_ANSWER: Final = 365
_MAX_RECORD_BYTES: Final = 16_384
_ONE_OF_EACH: Final = (Role.COORDINATOR, Role.AUDITOR)


class _Record(BaseModel):
    """One party's file in `invitations/`. request: hash of the request that was admitted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    coordinator: str
    id: str
    public_key: Hexadecimal
    role: Annotated[Role, BeforeValidator(Role)]
    until: Annotated[int, Field(ge=0, lt=LATEST_S)]
    request: Hexadecimal | None = None
    keys: Annotated[tuple[str, ...], BeforeValidator(tuple)] = ()

    @property
    def party(self) -> PartyName:
        return PartyName(role=self.role, id=self.id)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names in its TLS certificate: nobody but the coordinator is dialled."""
        return (split_address(self.coordinator)[0],) if self.role is Role.COORDINATOR else ()

    @property
    def ends(self) -> str:
        return f"{datetime.fromtimestamp(self.until, UTC):%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """How far a study's enrolment is. bundle: None while parties are missing (id and why)."""

    admitted: tuple[PartyName, ...]
    missing: dict[str, str]
    bundle: Bundle | None


def invite(
    folder: Path,
    parties: Sequence[PartyName],
    *,
    coordinator: str | None,
    days: int,
    now: datetime,
    passphrase: Passphrase | None,
) -> dict[str, Invitation]:
    """Make an invitation for each party; an unused one of the same party stops to count.

    Args: folder: of the CA. coordinator: host:port that parties dial, and the name in the
      coordinator's certificate; None for that of earlier invitations. days: until it is too late
      to ask, 1 to 365.
    Raises: ParameterError: no CA, a wrong address, a party that has its certificates already, a
      second coordinator or auditor, or one id twice.
    """
    ca = CaFolder(folder, passphrase)
    known = {one.id: one for one in _records(folder)}
    address = check_address(coordinator or _address_so_far(known))
    if not 1 <= days <= MAX_DAYS_TO_ANSWER:
        raise ParameterError(f"days to answer: expected 1 to {MAX_DAYS_TO_ANSWER}, got {days}")
    until = (now + timedelta(days=days)).replace(microsecond=0)
    _check_new(parties, known, ca)
    made = {}
    for party in parties:
        invitation = Invitation(
            party=party,
            coordinator=address,
            ca=certificate_fingerprint(ca.certificate),
            until=until,
            key=secrets.token_bytes(INVITATION_KEY_BYTES),
        )
        record = _Record(
            id=party.id,
            role=party.role,
            coordinator=address,
            public_key=invitation.public_key,
            until=int(until.timestamp()),
        )
        _write(folder, record)
        made[party.id] = invitation
    return made


def check_address(address: str) -> str:
    """The same address. Raises: ParameterError: not host:port, or a port that nobody can dial."""
    _, port = split_address(address)
    if port == 0:
        raise ParameterError(f"address {address!r}: port 0 cannot be dialled; name the port")
    return address


def admit(
    folder: Path,
    requests: Sequence[Path],
    *,
    days: int,
    now: datetime,
    passphrase: Passphrase | None,
    without: Collection[str] = (),
) -> Admission:
    """Issue certificates for requests of invited parties; the bundle, once nobody is missing.

    Every request is checked before the first certificate is issued.

    Args: days: validity of certificates. without: invited parties that stay out of the roster.
    Raises: ParameterError: a request that is unreadable, not invited, too late, of another role, or
      a second one with an invitation that was used; says which. Nothing was issued then.
    """
    ca = CaFolder(folder, passphrase)
    period_of(days, now)
    known = {one.id: one for one in _records(folder)}
    strangers = sorted(set(without) - known.keys())
    if strangers:
        raise ParameterError(f"--without: {', '.join(strangers)} is not invited here")
    new: dict[str, tuple[_Record, EnrolmentRequest]] = {}
    for path in requests:
        raw = read_at_most(path, MAX_ENROLMENT_BYTES, what="the request ")
        try:
            asked = parse_enrolment(raw)
            record = _invited(asked, sha256_hex(raw), known, ca=ca.certificate, now=now)
        except PeerError as error:
            raise ParameterError(f"{path}: {error}. Nothing was issued") from error
        if new.get(record.id, (record, asked))[0] != record:
            raise ParameterError(f"{path}: a second request of {record.id}. Nothing was issued")
        if known[record.id].request is None:
            new[record.id] = record, asked
    for record, asked in new.values():
        issue_certificates(ca, asked.keys, hosts=record.hosts, days=days, now=now)
        # Only now: an interruption in between issues once more for the same keys.
        _write(folder, record)
        known[record.id] = record
    admitted = tuple(record.party for record, _ in new.values())
    return _admission(ca, [one for one in known.values() if one.id not in without], admitted)


def _invited(
    asked: EnrolmentRequest,
    digest: str,
    known: dict[str, _Record],
    *,
    ca: x509.Certificate,
    now: datetime,
) -> _Record:
    """The record of whoever asks, with this request in it. Raises: PeerError: it is refused."""

    def refused(what: str) -> PeerError:
        return PeerError(f"request of {asked.party.uri}: {what}", reason="bad_request")

    record = known.get(asked.party.id)
    if asked.ca != certificate_fingerprint(ca):
        raise refused("it is for another study's CA; send it there")
    if record is None:
        raise refused(f"{asked.party.id} was not invited; `lada ca invite` makes an invitation")
    if record.party != asked.party:
        raise refused(f"{record.id} was invited as {record.role}, not as {asked.party.role}")
    if record.request == digest:
        return record
    if record.request is not None:
        raise refused(
            "its invitation was used already, with other keys. Ask the party by telephone whether "
            "it has asked twice; if it has not, somebody else has read its invitation: revoke what "
            f"was issued (`lada ca revoke DIR --id {record.id}`) and invite it again"
        )
    asked.check_invited(record.public_key)
    if now.timestamp() > record.until:
        raise refused(
            f"its invitation ended at {record.ends}; make a new one (`lada ca invite`), and have "
            "the party begin anew with it"
        )
    both = asked.keys.tls_key, asked.keys.signing_key
    keys = tuple(public_key_fingerprint(key) for key in both)
    return record.model_copy(update={"request": digest, "keys": keys})


def _admission(
    ca: CaFolder, records: Sequence[_Record], admitted: tuple[PartyName, ...]
) -> Admission:
    missing: dict[str, str] = {}
    pairs: dict[str, tuple[x509.Certificate, x509.Certificate]] = {}
    for record in records:
        if record.request is None:
            missing[record.id] = f"has not asked yet; invited until {record.ends}"
        elif _is_revoked(record, ca):
            missing[record.id] = "was revoked; invite it again, or leave it out (--without)"
        else:
            pairs[record.id] = _certificates(record, ca)
    if missing:
        return Admission(admitted=admitted, missing=missing, bundle=None)
    entries = tuple(
        party_of_certificates(record.party, tls=pairs[record.id][0], signing=pairs[record.id][1])
        for record in records
    )
    roster = Roster(study_ca=certificate_fingerprint(ca.certificate), parties=entries)
    bundle = Bundle(ca=ca.certificate, roster=roster, certificates=pairs)
    return Admission(admitted=admitted, missing={}, bundle=bundle)


def _certificates(record: _Record, ca: CaFolder) -> tuple[x509.Certificate, x509.Certificate]:
    """The newest certificates of the keys that were admitted, TLS first."""
    # Newest last: a renewed certificate takes the place of the one before.
    issued = {key_fingerprint(one): one for _, one in reversed(ca.issued_to(record.id))}
    absent = [key for key in record.keys if key not in issued]
    if absent:
        raise ParameterError(
            f"{ca.path}: the certificates that were issued to {record.id} are gone; restore "
            f"{ISSUED}/ from a backup"
        )
    tls, signing = (issued[key] for key in record.keys)
    return tls, signing


def _is_revoked(record: _Record, ca: CaFolder) -> bool:
    listed = ca.revocations()
    revoked = {} if listed is None else listed.revoked
    return any(one.serial_number in revoked for one in _certificates(record, ca))


def _check_new(parties: Sequence[PartyName], known: dict[str, _Record], ca: CaFolder) -> None:
    named: dict[str, PartyName] = {}
    for party in parties:
        if party.id in named:
            raise ParameterError(f"{party.id} is named twice; every party has an id of its own")
        named[party.id] = party
        record = known.get(party.id)
        if record is not None and record.request is not None and not _is_revoked(record, ca):
            raise ParameterError(
                f"{party.id} has its certificates already; to let it begin with new keys, revoke "
                f"them first (`lada ca revoke DIR --id {party.id}`)"
            )
    after = {one.id: one.party for one in known.values()} | named
    for role in _ONE_OF_EACH:
        holders = sorted(one.id for one in after.values() if one.role is role)
        if len(holders) > 1:
            raise ParameterError(
                f"a study has one {role}, this would be {' and '.join(holders)}; another study's "
                "CA lies in another folder"
            )


def _address_so_far(known: dict[str, _Record]) -> str:
    newest = max(known.values(), key=lambda one: one.until, default=None)
    if newest is None:
        raise ParameterError("--address: name host:port of the coordinator, as parties dial it")
    return newest.coordinator


def _records(folder: Path) -> list[_Record]:
    return [_read(path) for path in sorted((folder / INVITATIONS).glob("*.json"))]


def _read(path: Path) -> _Record:
    raw = read_at_most(path, _MAX_RECORD_BYTES)
    try:
        parse_canonical_json(raw, max_bytes=_MAX_RECORD_BYTES)
        return _Record.model_validate_json(raw)
    except (PeerError, ValidationError) as error:
        raise ParameterError(f"{path}: damaged; restore it from a backup") from error


def _write(folder: Path, record: _Record) -> None:
    raw = canonical_json(record.model_dump(mode="json"))
    path = folder / INVITATIONS / f"{record.id}.json"
    write_atomically(path, raw, mode=0o600)
