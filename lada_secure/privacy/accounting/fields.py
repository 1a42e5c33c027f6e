"""Signed JSON objects: what a field may hold, how they are written, and a strict reader.

Each is a frozen dataclass whose annotations say what pydantic accepts of foreign bytes. Made here,
its values are not looked at: whoever makes such an object answers for them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Final, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from lada_secure.canonical import Json, canonical_json
from lada_secure.errors import LedgerError, ParameterError

HEX_64 = re.compile(r"^[0-9a-f]{64}\Z")
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")
MAX_PERSON: Final = 128
# Beside letters, their marks and digits of any script. None of them begins anything in HTML,
# Markdown, a terminal or a shell's double quotes.
_IN_PERSONS: Final = frozenset(" .,'\u2019()/_:@+-")
# Letters and marks that nobody sees: two names that look alike would be two names.
_UNSEEN: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0")

Name = Annotated[str, StringConstraints(pattern=NAME)]
Digest = Annotated[str, StringConstraints(pattern=HEX_64)]
Signature = Annotated[str, StringConstraints(pattern=re.compile(r"^[0-9a-f]{128}\Z"))]
Count = Annotated[int, Field(ge=0, le=2**53)]
Number = Annotated[float, Field(ge=0.0, le=1e12)]
Parameters = Mapping[str, Annotated[float, Field(allow_inf_nan=False)] | Name]


def check_name(field: str, value: str) -> str:
    """Refuse names that are empty, long, or hold anything but letters, digits and `._:-`."""
    if NAME.match(value) is None:
        raise ParameterError(
            f"{field}: expected 1 to 128 letters, digits or . _ : - (starting with a letter or "
            f"digit), got {value[:40]!r}"
        )
    return value


def person_fault(value: str) -> str:
    """Why a text does not name who decides, a person or a rule; empty where it does.

    Names and roles are written as people write them ("Ana O'Neil, data protection"), and end up on
    pages, in terminals and in tables. So there are no control, format and markup characters.
    """
    if not 1 <= len(value) <= MAX_PERSON:
        return f"expected 1 to {MAX_PERSON} characters, got {len(value)}"
    for character in value:
        kind = unicodedata.category(character)
        known = kind[0] in "LM" or kind == "Nd" or character in _IN_PERSONS
        if not known or character in _UNSEEN or "\ufe00" <= character <= "\ufe0f":
            return (
                f"the character {character!a} is not taken; expected letters, digits, spaces and "
                ". , ' ( ) / _ : @ + -"
            )
    if not (value[0].isalpha() or value[0].isdecimal()):
        return "expected a letter or digit at the beginning"
    if value.endswith(" ") or "  " in value:
        return "expected single spaces, and none at the end"
    if unicodedata.normalize("NFC", value) != value:
        return "expected Unicode in normal form C"
    return ""


def check_person(field: str, value: str) -> str:
    """Refuse what does not name a person. Raises: ParameterError: see `person_fault`."""
    fault = person_fault(value)
    if fault:
        raise ParameterError(f"{field}: {fault}")
    return value


def _named(value: str) -> str:
    fault = person_fault(value)
    if fault:
        raise ValueError(fault)
    return value


Person = Annotated[str, AfterValidator(_named)]


def check_hash(field: str, value: str) -> str:
    """Refuse what is not a SHA-256 in lower-case hexadecimal."""
    if HEX_64.match(value) is None:
        raise ParameterError(f"{field}: expected 64 lower-case hexadecimal digits, got {value!r}")
    return value


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half of a key, hex."""
    return key.public_key().public_bytes_raw().hex()


def check_signed(content: bytes, signature: str, *, by: str, fault: str) -> None:
    """Args: signature, by: hex; the Ed25519 key that should have signed. fault: of the error.

    Raises: LedgerError: it has not signed this content.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(by))
        key.verify(bytes.fromhex(signature), content)
    except (InvalidSignature, ValueError) as error:
        raise LedgerError(fault) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRecord:
    """A signed JSON object. `signature` is hex, over everything else."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    # What the signed bytes begin with, so that no signature serves for another kind of object.
    domain: ClassVar[bytes] = b""

    signature: Signature

    def to_json(self) -> dict[str, Json]:
        """All fields, as they stand in the bytes."""
        return {field.name: _written(getattr(self, field.name)) for field in fields(self)}

    def line(self) -> bytes:
        """The one byte form: canonical JSON, without a line feed."""
        return canonical_json(self.to_json())

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return self._without("signature", domain=self.domain)

    def _without(self, *names: str, domain: bytes) -> bytes:
        content = self.to_json().items()
        return domain + canonical_json({name: v for name, v in content if name not in names})


def _written(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return value.to_json() if hasattr(value, "to_json") else value


Record = TypeVar("Record", bound=SignedRecord)


def read_record(known: TypeAdapter[Record], raw: bytes, *, max_bytes: int, where: str) -> Record:
    """Read the one byte form of a signed object; the signature is not checked here.

    Raises: LedgerError: too long, no JSON, another spelling, or a field that is missing, unknown
        or of another form.
    """
    if len(raw) > max_bytes:
        raise LedgerError(f"{where}: expected at most {max_bytes} bytes, got {len(raw)}")
    try:
        record = known.validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ": ".join((where, *map(str, first["loc"])))
        told = first["msg"].removeprefix("Value error, ")
        raise LedgerError(f"{field}: {told}, got {str(first['input'])[:80]!r}") from error
    except ParameterError as error:
        raise LedgerError(f"{where}: {error}") from error
    # Two spellings of one value would give one meaning two hashes.
    if record.line() != raw:
        raise LedgerError(f"{where}: not in its one spelling, which is canonical JSON")
    return record
