"""The roster: who takes part in a study, fixed by fingerprints of public keys.

Every site's policy and the auditor's settings pin the roster's hash, so a certificate authority
alone cannot add a party. All signatures are checked against the keys named here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, TypeAdapter, ValidationError

from lada_protocol.identity.certificates import PartyName, key_fingerprint
from lada_protocol.kinds import Role
from lada_secure.canonical import canonical_json, parse_canonical_json, sha256_hex
from lada_secure.errors import ParameterError, PeerError

MAX_ROSTER_BYTES: Final = 1 << 20
# 32 bytes; checked where a roster is read, and right by construction where one is made.
Hexadecimal: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_UNIQUE: Final = ("id", "tls_fingerprint", "signing_fingerprint", "signing_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Party(PartyName):
    """One party of a study.

    Fingerprints are SHA-256 of the DER form of the public key in the party's TLS and signing
    certificate, `signing_key` is the raw Ed25519 public key; each is 64 hexadecimal digits in
    lower case. A renewed certificate of the same key is the same party.
    """

    tls_fingerprint: Hexadecimal
    signing_fingerprint: Hexadecimal
    signing_key: Hexadecimal

    @property
    def name(self) -> PartyName:
        """Role and id, as in the party's certificates."""
        return PartyName(role=self.role, id=self.id)

    def verify_signature(self, signature: bytes, message: bytes) -> None:
        """Check this party's Ed25519 signature over `message`.

        Raises: PeerError: the signature is not this party's (reason "bad_signature").
        """
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.signing_key))
            key.verify(signature, message)
        except (InvalidSignature, ValueError) as error:
            raise PeerError(
                f"signature does not belong to {self.role} {self.id}: the message was changed or "
                "signed with a key that is not in the roster",
                reason="bad_signature",
                peer=self.id,
            ) from error


@dataclass(frozen=True, kw_only=True)
class Roster:
    """All parties of a study, sorted by id.

    Guarantees: exactly one coordinator, exactly one auditor, at least one site; ids, certificates
    and signing keys are unique; `study_ca` is the fingerprint of the CA that issued them.
    Raises: ParameterError: one of these does not hold.
    """

    study_ca: Hexadecimal
    parties: tuple[Party, ...]

    def __post_init__(self) -> None:
        parties = tuple(sorted(self.parties, key=lambda party: party.id))
        object.__setattr__(self, "parties", parties)
        count = Counter(party.role for party in parties)
        for role in (Role.COORDINATOR, Role.AUDITOR):
            if count[role] != 1:
                raise ParameterError(f"roster: expected exactly one {role}, got {count[role]}")
        if count[Role.SITE] < 1:
            raise ParameterError("roster: expected at least one site, got none")
        for what in _UNIQUE:
            if len({getattr(party, what) for party in parties}) != len(parties):
                raise ParameterError(f"roster: two parties share one {what}; each needs its own")

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, the roster's name everywhere."""
        return sha256_hex(self.to_bytes())

    @cached_property
    def coordinator(self) -> Party:
        """The one coordinator."""
        return next(party for party in self.parties if party.role is Role.COORDINATOR)

    @cached_property
    def auditor(self) -> Party:
        """The one auditor."""
        return next(party for party in self.parties if party.role is Role.AUDITOR)

    @cached_property
    def sites(self) -> tuple[Party, ...]:
        """The sites, sorted by id."""
        return tuple(party for party in self.parties if party.role is Role.SITE)

    def party(self, party_id: str) -> Party:
        """The party with this id. Raises: PeerError: nobody has it (reason "unknown_party")."""
        for party in self.parties:
            if party.id == party_id:
                return party
        raise PeerError(
            f"party {party_id[:40]!r} is not in the roster {self.hash[:16]}...",
            reason="unknown_party",
        )

    def party_with_tls_key(self, fingerprint: str) -> Party:
        """The party whose TLS key has this fingerprint.

        Raises: PeerError: nobody has it (reason "unknown_party").
        """
        for party in self.parties:
            if party.tls_fingerprint == fingerprint:
                return party
        raise PeerError(
            f"TLS key {fingerprint[:16]}... is not in the roster {self.hash[:16]}...; add the "
            "party to the roster or use the listed key",
            reason="unknown_party",
        )

    def to_bytes(self) -> bytes:
        """Canonical JSON, the form that is hashed and stored."""
        return canonical_json(asdict(self))


def party_of_certificates(
    name: PartyName, *, tls: x509.Certificate, signing: x509.Certificate
) -> Party:
    """The roster entry of a party whose certificates the caller has verified."""
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    return Party(
        id=name.id,
        role=name.role,
        tls_fingerprint=key_fingerprint(tls),
        signing_fingerprint=key_fingerprint(signing),
        signing_key=signing.public_key().public_bytes(*raw).hex(),
    )


def parse_roster(raw: bytes, max_bytes: int = MAX_ROSTER_BYTES) -> Roster:
    """Read a roster from canonical JSON, parties sorted by id.

    Raises: PeerError: too long, not canonical, unknown or missing fields, or not a roster.
    """
    parse_canonical_json(raw, max_bytes=max_bytes)
    try:
        roster = TypeAdapter(Roster).validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PeerError(f"roster, {where}: {first['msg']}") from error
    except ParameterError as error:
        raise PeerError(str(error)) from error
    if roster.to_bytes() != raw:
        raise PeerError("roster: parties must be sorted by id, without other fields")
    return roster
