"""Enrolling from afar: an invitation goes out, a request comes back, one bundle goes to everybody.

Whoever runs the CA tells each party an invitation, one line of text. It holds a key that is used
once: the party signs its two requests for certificates with it, so that a request proves to be the
invited party's without anybody's private key leaving its machine. The CA keeps the public half
alone; what it keeps admits nobody. The bundle holds certificates and the roster, nothing secret.

An invitation that is read on its way lets its reader ask in the party's place, once. Both then
notice: the party's own request is refused, and the roster's fingerprint, which all parties compare
by voice, is of other keys. Keys, times and random bytes are arguments: nothing here reads a clock,
a disk or a random source.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lada_protocol.identity.certificates import (
    MAX_CERTIFICATE_BYTES,
    PartyName,
    certificate_fingerprint,
    certificate_pem,
    parse_certificate,
    parse_party_name,
    verify_party,
)
from lada_protocol.identity.issuance import (
    MAX_REQUEST_BYTES,
    SIGNING_REQUEST,
    TLS_REQUEST,
    Enrolment,
    build_requests,
    parse_requests,
)
from lada_protocol.identity.roster import (
    MAX_ROSTER_BYTES,
    Hexadecimal,
    Roster,
    parse_roster,
    party_of_certificates,
)
from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.errors import ParameterError, PeerError

# 128 bits of the invitation's key; its Ed25519 key is a hash of them.
INVITATION_KEY_BYTES: Final = 16
MAX_INVITATION_CHARACTERS: Final = 2048
# Seconds at the end of the year 9999; no calendar here goes on.
LATEST_S: Final = 253_402_300_800
MAX_ENROLMENT_BYTES: Final = 4 * MAX_REQUEST_BYTES
MAX_BUNDLE_BYTES: Final = 16 << 20
FINGERPRINT_GROUPS: Final = 6
_GROUP_DIGITS: Final = 5
_PREFIX: Final = "lada-invitation-1."
_CHECKSUM_BYTES: Final = 4
_KEY_CONTEXT: Final = b"lada/1/invitation/key/"
_PROOF_CONTEXT: Final = b"lada/1/invitation/proof/"
# Whoever makes two rosters that look alike by voice has to compute this for 2^50 of them and more:
# 32 MiB and a tenth of a second each.
_SCRYPT: Final = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20}
_FINGERPRINT_SALT: Final = b"lada/1/roster/fingerprint"


class _Envelope(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


E = TypeVar("E", bound=_Envelope)


class _InvitationForm(_Envelope):
    ca: Hexadecimal
    coordinator: Annotated[str, Field(pattern=r"^[!-~]{1,300}$")]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    party: Annotated[str, Field(max_length=64)]
    until: Annotated[int, Field(ge=0, lt=LATEST_S)]


class _RequestForm(_Envelope):
    ca: Hexadecimal
    party: Annotated[str, Field(max_length=64)]
    proof: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    sign_csr: Annotated[str, Field(max_length=MAX_REQUEST_BYTES)]
    tls_csr: Annotated[str, Field(max_length=MAX_REQUEST_BYTES)]


class _PairForm(_Envelope):
    sign: Annotated[str, Field(max_length=MAX_CERTIFICATE_BYTES)]
    tls: Annotated[str, Field(max_length=MAX_CERTIFICATE_BYTES)]


class _BundleForm(_Envelope):
    ca: Annotated[str, Field(max_length=MAX_CERTIFICATE_BYTES)]
    certificates: dict[str, _PairForm]
    roster: Annotated[str, Field(max_length=MAX_ROSTER_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What a party needs to ask for its certificates, in one line of text.

    coordinator: host:port that parties dial. ca: fingerprint of the CA that invites. until: when it
    is too late, aware UTC time in whole seconds. key: 16 random bytes, used once.
    """

    party: PartyName
    coordinator: str
    ca: str
    until: datetime
    key: bytes = field(repr=False)

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The key that a request is signed with."""
        return Ed25519PrivateKey.from_private_bytes(
            hashlib.sha256(_KEY_CONTEXT + self.key).digest()
        )

    @property
    def public_key(self) -> str:
        """What the CA keeps of it, 64 hexadecimal digits."""
        return self.signing_key.public_key().public_bytes_raw().hex()

    def to_text(self) -> str:
        """The line that is told to the party; a checksum finds what was mistyped."""
        raw = canonical_json(
            {
                "ca": self.ca,
                "coordinator": self.coordinator,
                "key": self.key.hex(),
                "party": self.party.uri,
                "until": int(self.until.timestamp()),
            }
        )
        return _PREFIX + base64.urlsafe_b64encode(raw + _checksum(raw)).decode("ascii").rstrip("=")


def parse_invitation(text: str) -> Invitation:
    """Read an invitation; white space in it, as mail programs put, does not count.

    Raises: ParameterError: too long, not an invitation, or not whole.
    """
    line = "".join(text.split())
    if len(line) > MAX_INVITATION_CHARACTERS or not line.startswith(_PREFIX):
        raise ParameterError(
            f"invitation: expected a line that begins with {_PREFIX}, as `lada ca invite` prints "
            f"it, got {len(line)} characters of something else"
        )
    body = line.removeprefix(_PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise _torn() from error
    raw, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if checksum != _checksum(raw):
        raise _torn()
    try:
        found = _parsed(
            raw, _InvitationForm, max_bytes=MAX_INVITATION_CHARACTERS, what="invitation"
        )
        party = parse_party_name(found.party)
    except PeerError as error:
        raise ParameterError(str(error)) from error
    return Invitation(
        party=party,
        coordinator=found.coordinator,
        ca=found.ca,
        until=datetime.fromtimestamp(found.until, UTC),
        key=bytes.fromhex(found.key),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentRequest:
    """A party's two requests, and the proof that they are the invited party's.

    keys: public keys whose private halves signed the requests. ca: fingerprint that the invitation
    names. proof: signature by the invitation's key.
    """

    keys: Enrolment
    ca: str
    proof: bytes
    proven: bytes

    @property
    def party(self) -> PartyName:
        """Who asks; the same in both requests and beside them."""
        return self.keys.party

    def check_invited(self, public_key: str) -> None:
        """Refuse a request that was not made with the invitation whose public half this is.

        Raises: PeerError: another key's signature, or none (reason "bad_request").
        """
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
            key.verify(self.proof, self.proven)
        except (InvalidSignature, ValueError) as error:
            raise PeerError(
                f"request of {self.party.uri}: it was not made with the invitation that stands for "
                f"{self.party.id} now; make a new one (`lada ca invite`), and have the party "
                "begin anew with it",
                reason="bad_request",
                peer=self.party.id,
            ) from error


def build_enrolment(
    invitation: Invitation,
    *,
    tls_key: ec.EllipticCurvePrivateKey,
    signing_key: Ed25519PrivateKey,
) -> bytes:
    """The one file that a party sends to the CA: canonical JSON, nothing in it secret."""
    requests = build_requests(invitation.party, tls_key=tls_key, signing_key=signing_key)
    asked = {
        "ca": invitation.ca,
        "party": invitation.party.uri,
        "sign_csr": requests[SIGNING_REQUEST].decode("ascii"),
        "tls_csr": requests[TLS_REQUEST].decode("ascii"),
    }
    proof = invitation.signing_key.sign(_PROOF_CONTEXT + canonical_json(asked))
    return canonical_json({**asked, "proof": proof.hex()})


def parse_enrolment(raw: bytes) -> EnrolmentRequest:
    """Read a party's request; who invited it is checked by `EnrolmentRequest.check_invited`.

    Raises: PeerError: too long, malformed, of two parties, or not signed by its own keys.
    """
    found = _parsed(raw, _RequestForm, max_bytes=MAX_ENROLMENT_BYTES, what="request")
    try:
        keys = parse_requests(
            tls=found.tls_csr.encode("ascii"), signing=found.sign_csr.encode("ascii")
        )
    except UnicodeEncodeError as error:
        raise PeerError("request: not ASCII", reason="bad_request") from error
    if keys.party.uri != found.party:
        raise PeerError(
            f"request: it says {found.party!r}, its requests are of {keys.party.uri}",
            reason="bad_request",
        )
    asked = found.model_dump(exclude={"proof"})
    return EnrolmentRequest(
        keys=keys,
        ca=found.ca,
        proof=bytes.fromhex(found.proof),
        proven=_PROOF_CONTEXT + canonical_json(asked),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What everybody gets: the CA, the roster, and (TLS, signing) certificates by party id."""

    ca: x509.Certificate
    roster: Roster
    certificates: Mapping[str, tuple[x509.Certificate, x509.Certificate]]

    def check(self, *, at: datetime) -> None:
        """Every certificate is of this CA, in date, and holds the keys that the roster lists.

        Raises: PeerError: it is not.
        """
        if self.roster.study_ca != certificate_fingerprint(self.ca):
            raise PeerError("bundle: its roster is of another CA than its certificates")
        if self.certificates.keys() != {party.id for party in self.roster.parties}:
            raise PeerError("bundle: certificates and roster are not of the same parties")
        for party in self.roster.parties:
            tls, signing = self.certificates[party.id]
            verify_party(tls, ca=self.ca, at=at, usage="tls", expected=party.name)
            verify_party(signing, ca=self.ca, at=at, usage="signing", expected=party.name)
            if party_of_certificates(party.name, tls=tls, signing=signing) != party:
                raise PeerError(f"bundle: {party.id} has other keys in the roster", peer=party.id)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(
            {
                "ca": certificate_pem(self.ca).decode("ascii"),
                "certificates": {
                    party: {
                        "sign": certificate_pem(signing).decode("ascii"),
                        "tls": certificate_pem(tls).decode("ascii"),
                    }
                    for party, (tls, signing) in self.certificates.items()
                },
                "roster": self.roster.to_bytes().decode("ascii"),
            }
        )


def parse_bundle(raw: bytes) -> Bundle:
    """Read a bundle; `Bundle.check` says whether it holds together.

    Raises: PeerError: too long or malformed.
    """
    found = _parsed(raw, _BundleForm, max_bytes=MAX_BUNDLE_BYTES, what="bundle")
    return Bundle(
        ca=_certificate(found.ca),
        roster=parse_roster(found.roster.encode("utf-8")),
        certificates={
            party: (_certificate(pair.tls), _certificate(pair.sign))
            for party, pair in found.certificates.items()
        },
    )


def roster_fingerprint(roster_hash: str) -> str:
    """What people read to each other: six groups of five digits, in one order, from the hash.

    The roster is one that whoever runs the CA made, who could look for two rosters that read alike.
    Thirty digits are 99 bits, so two of 2^50 rosters would; each costs a memory-hard hash (scrypt,
    RFC 7914).

    Args: roster_hash: SHA-256 of the roster, 64 hexadecimal digits.
    """
    digest = hashlib.scrypt(bytes.fromhex(roster_hash), salt=_FINGERPRINT_SALT, dklen=32, **_SCRYPT)
    digits = f"{int.from_bytes(digest) % 10 ** (FINGERPRINT_GROUPS * _GROUP_DIGITS):030d}"
    starts = range(0, len(digits), _GROUP_DIGITS)
    return " ".join(digits[start : start + _GROUP_DIGITS] for start in starts)


def _groups(places: list[str]) -> str:
    """What differs, in words."""
    if len(places) == 1:
        return f"group {places[0]} differs"
    return f"groups {', '.join(places)} differ"


def check_fingerprint(expected: str, read_out: str) -> None:
    """Compare what somebody has read out with this party's own.

    Args: read_out: white space, dots and dashes in it do not count.
    Raises: ParameterError: it differs, or is no fingerprint; says where.
    """
    digits = "".join(one for one in read_out if not (one.isspace() or one in ".-"))
    if len(digits) != len(expected.replace(" ", "")) or not (
        digits.isascii() and digits.isdecimal()
    ):
        raise ParameterError(
            f"fingerprint of the roster: expected {FINGERPRINT_GROUPS} groups of {_GROUP_DIGITS} "
            f"digits, got {read_out[:60]!r}"
        )
    groups = [digits[start : start + _GROUP_DIGITS] for start in range(0, 30, _GROUP_DIGITS)]
    pairs = zip(groups, expected.split(), strict=True)
    wrong = [str(place) for place, (one, other) in enumerate(pairs, start=1) if one != other]
    if wrong:
        raise ParameterError(
            f"fingerprint of the roster: here it is {expected}, read out was {' '.join(groups)}; "
            f"{_groups(wrong)}. If one group differs, it may have been misheard: "
            "read it out again. If it stays so, the others have another roster: do not go on, and "
            "ask whoever runs the CA for the bundle that everybody has"
        )


def _checksum(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()[:_CHECKSUM_BYTES]


def _torn() -> ParameterError:
    return ParameterError(
        "invitation: a part of it is missing or mistyped; copy the whole line that `lada ca "
        "invite` printed"
    )


def _parsed(raw: bytes, form: type[E], *, max_bytes: int, what: str) -> E:
    parse_canonical_json(raw, max_bytes=max_bytes)
    try:
        return form.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise PeerError(f"{what}, {where}: {first['msg']}", reason="bad_request") from error


def _certificate(pem: str) -> x509.Certificate:
    return parse_certificate(pem.encode("utf-8"))
