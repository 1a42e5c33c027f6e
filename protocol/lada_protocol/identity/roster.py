"""The roster: who takes part in a study, fixed by fingerprints of public keys.

Every site's policy and the auditor's settings pin the roster's hash, so a certificate authority
alone cannot add a party. All signatures are checked against the keys named here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from lada_protocol.identity.certificates import (
    PartyName,
    certificate_fingerprint,
    key_fingerprint,
    parse_role,
    signing_key_of,
)
from lada_protocol.kinds import Role
from lada_secure.canonical import Json, canonical_json, parse_canonical_json, sha256_hex
from lada_secure.errors import ParameterError, PeerError

MAX_ROSTER_BYTES: Final = 1 << 20
_HEX_32_BYTES: Final = re.compile(r"[0-9a-f]{64}")
_PARTY_FIELDS: Final = frozenset(
    {"id", "role", "tls_fingerprint", "signing_fingerprint", "signing_key"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """One party of a study.

    Fingerprints are SHA-256 of the DER form of the public key in the party's TLS and signing
    certificate, `signing_key` is the raw Ed25519 public key; each is 64 hexadecimal digits in
    lower case. A renewed certificate of the same key is the same party.

    Raises: ParameterError: an id, role, fingerprint or key of another form.
    """

    id: str
    role: Role
    tls_fingerprint: str
    signing_fingerprint: str
    signing_key: str

    def __post_init__(self) -> None:
        PartyName(role=self.role, id=self.id)
        for what in ("tls_fingerprint", "signing_fingerprint", "signing_key"):
            if not _HEX_32_BYTES.fullmatch(getattr(self, what)):
                raise ParameterError(
                    f"{what} of party {self.id}: expected 64 hexadecimal digits in lower case"
                )

    @property
    def name(self) -> PartyName:
        """Role and id, as in the party's certificates."""
        return PartyName(role=self.role, id=self.id)

    def verify_signature(self, signature: bytes, message: bytes) -> None:
        """Check this party's Ed25519 signature over `message`.

        Raises: PeerError: the signature is not this party's (reason "bad_signature").
        """
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.signing_key)).verify(
                signature, message
            )
        except (InvalidSignature, ValueError) as error:
            raise PeerError(
                f"signature does not belong to {self.role} {self.id}: the message was changed or "
                "signed with a key that is not in the roster",
                reason="bad_signature",
                peer=self.id,
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """All parties of a study, sorted by id.

    Guarantees: exactly one coordinator, exactly one auditor, at least one site; ids, certificates
    and signing keys are unique; `study_ca` is the fingerprint of the CA that issued them.
    Raises: ParameterError: one of these does not hold.
    """

    study_ca: str
    parties: tuple[Party, ...]
    hash: str = field(init=False)
    _by_id: Mapping[str, Party] = field(init=False, repr=False, compare=False)
    _by_tls_fingerprint: Mapping[str, Party] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _HEX_32_BYTES.fullmatch(self.study_ca):
            raise ParameterError("study_ca of the roster: expected 64 hexadecimal digits")
        object.__setattr__(self, "parties", tuple(sorted(self.parties, key=lambda one: one.id)))
        _check_parties(self.parties)
        object.__setattr__(self, "_by_id", {one.id: one for one in self.parties})
        object.__setattr__(
            self, "_by_tls_fingerprint", {one.tls_fingerprint: one for one in self.parties}
        )
        object.__setattr__(self, "hash", sha256_hex(self.to_bytes()))

    def __hash__(self) -> int:
        return hash(self.hash)

    @property
    def coordinator(self) -> Party:
        """The one coordinator."""
        return next(one for one in self.parties if one.role is Role.COORDINATOR)

    @property
    def auditor(self) -> Party:
        """The one auditor."""
        return next(one for one in self.parties if one.role is Role.AUDITOR)

    @property
    def sites(self) -> tuple[Party, ...]:
        """The sites, sorted by id."""
        return tuple(one for one in self.parties if one.role is Role.SITE)

    def party(self, party_id: str) -> Party:
        """The party with this id.

        Raises: PeerError: nobody has it (reason "unknown_party").
        """
        try:
            return self._by_id[party_id]
        except KeyError:
            raise PeerError(
                f"party {party_id[:40]!r} is not in the roster {self.hash[:16]}...",
                reason="unknown_party",
            ) from None

    def party_with_tls_key(self, fingerprint: str) -> Party:
        """The party whose TLS key has this fingerprint.

        Raises: PeerError: nobody has it (reason "unknown_party").
        """
        try:
            return self._by_tls_fingerprint[fingerprint]
        except KeyError:
            raise PeerError(
                f"TLS key {fingerprint[:16]}... is not in the roster "
                f"{self.hash[:16]}...; add the party to the roster or use the listed key",
                reason="unknown_party",
            ) from None

    def to_bytes(self) -> bytes:
        """Canonical JSON, the form that is hashed and stored."""
        parties: list[Json] = [
            {
                "id": one.id,
                "role": one.role.value,
                "tls_fingerprint": one.tls_fingerprint,
                "signing_fingerprint": one.signing_fingerprint,
                "signing_key": one.signing_key,
            }
            for one in self.parties
        ]
        return canonical_json({"study_ca": self.study_ca, "parties": parties})


def _check_parties(parties: tuple[Party, ...]) -> None:
    count = Counter(one.role for one in parties)
    for role in (Role.COORDINATOR, Role.AUDITOR):
        if count[role] != 1:
            raise ParameterError(f"roster: expected exactly one {role}, got {count[role]}")
    if count[Role.SITE] < 1:
        raise ParameterError("roster: expected at least one site, got none")
    for what in ("id", "tls_fingerprint", "signing_fingerprint", "signing_key"):
        if len({getattr(one, what) for one in parties}) != len(parties):
            raise ParameterError(f"roster: two parties share one {what}; each needs its own")


def party_of_certificates(
    name: PartyName, *, tls: x509.Certificate, signing: x509.Certificate
) -> Party:
    """The roster entry of a party whose certificates the caller has verified."""
    return Party(
        id=name.id,
        role=name.role,
        tls_fingerprint=key_fingerprint(tls),
        signing_fingerprint=key_fingerprint(signing),
        signing_key=signing_key_of(signing).public_bytes_raw().hex(),
    )


def build_roster(*, ca: x509.Certificate, parties: Iterable[Party]) -> Roster:
    """Roster of parties whose certificates `ca` issued.

    Raises: ParameterError: the parties do not make a roster.
    """
    return Roster(study_ca=certificate_fingerprint(ca), parties=tuple(parties))


def parse_roster(raw: bytes, max_bytes: int = MAX_ROSTER_BYTES) -> Roster:
    """Read a roster from canonical JSON, parties sorted by id.

    Raises: PeerError: too long, not canonical, unknown or missing fields, or not a roster.
    """
    value = parse_canonical_json(raw, max_bytes=max_bytes)
    if not isinstance(value, Mapping) or set(value) != {"study_ca", "parties"}:
        raise PeerError("roster: expected an object with study_ca and parties", reason="malformed")
    entries, study_ca = value["parties"], value["study_ca"]
    if not isinstance(entries, list) or not isinstance(study_ca, str):
        raise PeerError("roster: parties must be a list and study_ca a text", reason="malformed")
    try:
        roster = Roster(study_ca=study_ca, parties=tuple(_parse_party(one) for one in entries))
    except ParameterError as error:
        raise PeerError(str(error), reason="malformed") from error
    if roster.to_bytes() != raw:
        raise PeerError("roster: parties must be sorted by id", reason="malformed")
    return roster


def _parse_party(value: Json) -> Party:
    if not isinstance(value, Mapping) or set(value) != _PARTY_FIELDS:
        raise ParameterError(f"roster: a party has the fields {', '.join(sorted(_PARTY_FIELDS))}")
    texts = {what: one for what, one in value.items() if isinstance(one, str)}
    if len(texts) != len(value):
        raise ParameterError("roster: every field of a party is a text")
    return Party(
        id=texts["id"],
        role=parse_role(texts["role"]),
        tls_fingerprint=texts["tls_fingerprint"],
        signing_fingerprint=texts["signing_fingerprint"],
        signing_key=texts["signing_key"],
    )
