"""Signed envelopes: the header that is signed, and the payload that its hash binds.

Every message is bound to study, plan, roster, round, attempt, purpose, sender and addressee, so
a message of another context never verifies (SPEC.md, "Envelope").
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Annotated, Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lada_protocol.kinds import Kind, kind_rules, parse_kind
from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.errors import ParameterError, PeerError

if TYPE_CHECKING:
    from lada_protocol.identity.roster import Roster

WIRE_VERSION = 2
# Domain separation: a header signature can never be taken for a signature over anything else.
SIGNATURE_CONTEXT = b"lada/2/"
MAX_HEADER_BYTES = 64 * 1024

PartyId = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# It names folders and files, so it never starts with a dot.
StudyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Label = Annotated[str, Field(pattern=r"^[a-z_]{0,32}$")]

NO_PAYLOAD = hashlib.sha256(b"").hexdigest()


class Header(BaseModel):
    """What is signed. `purpose` and `to` are empty where a kind has none; rounds start at 0."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int = WIRE_VERSION
    kind: Annotated[str, Field(max_length=32)]
    study_id: StudyId
    plan_hash: Digest
    roster_hash: Digest
    round_id: Annotated[int, Field(ge=0, le=100_000)]
    attempt: Annotated[int, Field(ge=0, le=1_000)]
    purpose: Label
    sender: PartyId
    to: Annotated[str, Field(pattern=r"^[a-z0-9-]{0,32}$")]
    body: dict[str, Any]
    payload_sha256: Digest
    payload_bytes: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _version_is_ours(self) -> Self:
        if self.version != WIRE_VERSION:
            raise ValueError(f"wire version {self.version}, this software speaks {WIRE_VERSION}")
        return self


class Envelope:
    """A header with its exact bytes and a signature that was checked or made here.

    Build one with `sign_envelope` or `parse_envelope` only: holding an Envelope means that the
    signature is the sender's.
    """

    __slots__ = ("_header", "_header_bytes", "_kind", "_signature")

    def __init__(self, header: Header, header_bytes: bytes, signature: bytes) -> None:
        self._header = header
        self._header_bytes = header_bytes
        self._signature = signature
        self._kind = parse_kind(header.kind)

    @property
    def header(self) -> Header:
        """The parsed header."""
        return self._header

    @property
    def header_bytes(self) -> bytes:
        """The canonical JSON that was signed."""
        return self._header_bytes

    @property
    def signature(self) -> bytes:
        """64 bytes of Ed25519."""
        return self._signature

    @property
    def kind(self) -> Kind:
        """The message kind."""
        return self._kind

    @property
    def message_hash(self) -> str:
        """SHA-256 of the header bytes, the message's name everywhere."""
        return hashlib.sha256(self._header_bytes).hexdigest()

    def __repr__(self) -> str:
        head = self._header
        return (
            f"Envelope({head.kind}, {head.sender}, round {head.round_id}, "
            f"attempt {head.attempt}, {head.purpose or '-'})"
        )


def sign_envelope(header: Header, key: Ed25519PrivateKey) -> Envelope:
    """Sign a header with the sender's signing key."""
    raw = canonical_json(header.model_dump())
    if len(raw) > MAX_HEADER_BYTES:
        raise ParameterError(
            f"header of {len(raw)} bytes, at most {MAX_HEADER_BYTES}; large parts are payload"
        )
    return Envelope(header, raw, key.sign(SIGNATURE_CONTEXT + raw))


def parse_envelope(header_bytes: bytes, signature: bytes, *, roster: Roster) -> Envelope:
    """Parse and verify a foreign envelope against the pinned roster.

    Raises: PeerError with reason too_large, malformed, unknown_kind, unknown_party, wrong_role,
        wrong_roster, bad_signature.
    """
    value = parse_canonical_json(header_bytes, max_bytes=MAX_HEADER_BYTES)
    try:
        header = Header.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "header"
        raise PeerError(f"bad header, {where}: {first['msg']}", reason="malformed") from error
    if canonical_json(header.model_dump()) != header_bytes:
        raise PeerError("bad header: a field is missing", reason="malformed")
    kind = parse_kind(header.kind)
    party = roster.party(header.sender)
    rules = kind_rules(kind)
    if party.role not in rules.senders:
        raise PeerError(
            f"{kind} may be sent by {sorted(rules.senders)}, {header.sender} is a {party.role}",
            reason="wrong_role",
            peer=header.sender,
            round_id=header.round_id,
        )
    if header.roster_hash != roster.hash:
        raise PeerError(
            f"{kind} of {header.sender} names another roster; compare roster files out of band",
            reason="wrong_roster",
            peer=header.sender,
        )
    if header.payload_bytes > rules.max_payload_bytes:
        raise PeerError(
            f"{kind} announces {header.payload_bytes} bytes, at most {rules.max_payload_bytes}",
            reason="too_large",
            peer=header.sender,
        )
    if header.payload_bytes == 0 and header.payload_sha256 != NO_PAYLOAD:
        raise PeerError(f"{kind}: hash of an empty payload is wrong", peer=header.sender)
    party.verify_signature(signature, SIGNATURE_CONTEXT + header_bytes)
    return Envelope(header, header_bytes, signature)


_HEX = re.compile(r"(?:[0-9a-f]{2})*")


def envelope_to_line(envelope: Envelope) -> bytes:
    """One line of an export file: canonical JSON with header text and signature in hexadecimal."""
    return canonical_json(
        {"header": envelope.header_bytes.decode("ascii"), "signature": envelope.signature.hex()}
    )


def envelope_from_line(line: bytes, *, roster: Roster) -> Envelope:
    """Read what `envelope_to_line` wrote; any other spelling is refused.

    Raises: PeerError as `parse_envelope`.
    """
    value = parse_canonical_json(line, max_bytes=3 * MAX_HEADER_BYTES)
    if not isinstance(value, dict) or set(value) != {"header", "signature"}:
        raise PeerError("expected an object with header and signature")
    header, signature = value["header"], value["signature"]
    if (
        not isinstance(header, str)
        or not isinstance(signature, str)
        or not header.isascii()
        or not _HEX.fullmatch(signature)
    ):
        raise PeerError("expected an ASCII header and a signature in lower-case hexadecimal")
    return parse_envelope(header.encode("ascii"), bytes.fromhex(signature), roster=roster)
