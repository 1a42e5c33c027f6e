"""Signed envelopes: the header that is signed, and the payload that its hash binds.

Every message is bound to study, plan, roster, round, attempt, purpose, sender and addressee, so
a message of another context never verifies (SPEC.md, "Envelope").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind, parse_kind
from lada_secure.canonical import canonical_json, parse_canonical_json, sha256_hex
from lada_secure.errors import ParameterError, PeerError

WIRE_VERSION = 2
# Domain separation: a header signature can never be taken for a signature over anything else.
SIGNATURE_CONTEXT = b"lada/2/"
MAX_HEADER_BYTES = 64 * 1024

PartyId = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# It names folders and files, so it never starts with a dot.
StudyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Label = Annotated[str, Field(pattern=r"^[a-z_]{0,32}$")]

NO_PAYLOAD = sha256_hex(b"")
T = TypeVar("T")


class StrictModel(BaseModel):
    """Base of what is read from foreign JSON: frozen, no unknown fields, nothing converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def first_fault(error: ValidationError, document: str) -> str:
    """Where the first fault of a document is, and what."""
    first = error.errors()[0]
    where = [document] if not first["loc"] else [document, ".".join(map(str, first["loc"]))]
    return f"{', '.join(where)}: {first['msg']}"


def read_document(
    raw: bytes, form: type[T], *, what: str, max_bytes: int, reason: str = "malformed"
) -> T:
    """Read foreign bytes into a type: the one way in for every JSON document.

    Args: form: a `StrictModel`, or a list of such or of plain values. what: for messages.
    Raises: PeerError: too_large, malformed (not canonical JSON), `reason` (another form).
    """
    value = parse_canonical_json(raw, max_bytes=max_bytes)
    try:
        return TypeAdapter(form).validate_python(value, strict=True)
    except ValidationError as error:
        raise PeerError(first_fault(error, what), reason=reason) from error


class Header(StrictModel):
    """What is signed. `purpose` and `to` are empty where a kind has none; rounds start at 0."""

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


@dataclass(frozen=True, repr=False, eq=False)
class Envelope:
    """A header with its exact bytes and a signature that was checked or made here.

    Build one with `sign_envelope` or `parse_envelope` only: holding an Envelope means that the
    signature is the sender's.

    header_bytes: the canonical JSON that was signed. signature: 64 bytes of Ed25519.
    """

    header: Header
    header_bytes: bytes
    signature: bytes

    @cached_property
    def kind(self) -> Kind:
        """The message kind."""
        return parse_kind(self.header.kind)

    @cached_property
    def message_hash(self) -> str:
        """SHA-256 of the header bytes, the message's name everywhere."""
        return sha256_hex(self.header_bytes)

    def fault(self, message: str, *, reason: str = "malformed") -> PeerError:
        """An error for what is wrong with this message; it names sender and round."""
        head = self.header
        return PeerError(message, reason=reason, peer=head.sender, round_id=head.round_id)

    def __repr__(self) -> str:
        head = self.header
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
    header = read_document(header_bytes, Header, what="bad header", max_bytes=MAX_HEADER_BYTES)
    if canonical_json(header.model_dump()) != header_bytes:
        raise PeerError("bad header: a field is missing")
    found = Envelope(header, header_bytes, signature)
    kind, party = found.kind, roster.party(header.sender)
    rules = kind.rules
    if party.role not in rules.senders:
        raise found.fault(
            f"{kind} may be sent by {sorted(rules.senders)}, {header.sender} is a {party.role}",
            reason="wrong_role",
        )
    if header.roster_hash != roster.hash:
        raise found.fault(
            f"{kind} of {header.sender} names another roster; compare roster files out of band",
            reason="wrong_roster",
        )
    if header.payload_bytes > rules.max_payload_bytes:
        raise found.fault(
            f"{kind} announces {header.payload_bytes} bytes, at most {rules.max_payload_bytes}",
            reason="too_large",
        )
    if header.payload_bytes == 0 and header.payload_sha256 != NO_PAYLOAD:
        raise found.fault(f"{kind}: hash of an empty payload is wrong")
    party.verify_signature(signature, SIGNATURE_CONTEXT + header_bytes)
    return found


class _Line(StrictModel):
    header: Annotated[str, Field(pattern=r"^[\x00-\x7f]*$")]
    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]


def envelope_to_line(envelope: Envelope) -> bytes:
    """One line of an export file: canonical JSON with header text and signature in hexadecimal."""
    return canonical_json(
        {"header": envelope.header_bytes.decode("ascii"), "signature": envelope.signature.hex()}
    )


def envelope_from_line(line: bytes, *, roster: Roster) -> Envelope:
    """Read what `envelope_to_line` wrote; any other spelling is refused.

    Raises: PeerError as `parse_envelope`.
    """
    found = read_document(line, _Line, what="message", max_bytes=3 * MAX_HEADER_BYTES)
    signature = bytes.fromhex(found.signature)
    return parse_envelope(found.header.encode("ascii"), signature, roster=roster)
