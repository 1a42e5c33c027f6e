"""Fields of signed JSON objects: what each may hold, and a strict reader and writer of dataclasses.

A dataclass names the forms of each field by `Annotated[type, form, ...]`. They are applied in turn
to the JSON value; the last result is kept. Whoever makes such an object answers for its values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeAlias, get_args, get_type_hints

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from lada_secure.canonical import Json
from lada_secure.errors import LedgerError, ParameterError

HEX_64 = re.compile(r"[0-9a-f]{64}")
HEX_128 = re.compile(r"[0-9a-f]{128}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

Reader: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Form:
    """A condition on a value, the words for it, and how much of another value a message shows."""

    expected: str
    holds: Callable[[Any], bool]
    shown: int = 80

    def __call__(self, value: Any) -> Any:
        """The value. Raises: ValueError: the condition does not hold."""
        if not self.holds(value):
            raise ValueError(f"expected {self.expected}, got {str(value)[: self.shown]!r}")
        return value


def matching(pattern: re.Pattern[str]) -> Form:
    """A string that matches a pattern as a whole."""
    return Form(
        f"text of the form {pattern.pattern}",
        lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None,
    )


def text(max_length: int = 1000) -> Form:
    """A string of at most `max_length` characters."""
    return Form(
        f"text of at most {max_length} characters",
        lambda value: isinstance(value, str) and len(value) <= max_length,
    )


def integer(low: int = 0, high: int = 2**53) -> Form:
    """A whole number in [low, high]."""
    return Form(
        f"a whole number from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def number(low: float = 0.0, high: float = 1e12) -> Form:
    """A finite float in [low, high]."""
    return Form(
        f"a number from {low} to {high}",
        lambda value: type(value) is float and low <= value <= high,
    )


def names(max_names: int) -> Reader:
    """A list of at most `max_names` different names, sorted; kept as a tuple."""
    listed = Form(
        f"a list of at most {max_names} names",
        lambda value: isinstance(value, list) and len(value) <= max_names,
    )
    in_order = Form(
        "different names, sorted", lambda value: value == sorted(set(filter(_is_name, value)))
    )
    return lambda value: tuple(in_order(listed(value)))


def version(known: int) -> Reader:
    """The one version that is read."""
    return Form(
        f"version {known}, which this software reads",
        lambda value: type(value) is int and value == known,
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _parameters(value: Any) -> dict[str, float | str]:
    Form("an object of numbers and names", lambda one: isinstance(one, dict))(value)
    known = Form(
        "a finite number or a name",
        lambda one: _is_name(one) or (type(one) is float and math.isfinite(one)),
    )
    for name, parameter in value.items():
        try:
            known(parameter)
        except ValueError as error:
            raise ValueError(f"{name[:40]}: {error}") from error
    return dict(value)


Name = Annotated[str, matching(NAME)]
Digest = Annotated[str, matching(HEX_64)]
Signature = Annotated[str, matching(HEX_128)]
Count = Annotated[int, integer()]
Number = Annotated[float, number()]
Parameters = Annotated[Mapping[str, float | str], _parameters]


def check_name(field: str, value: str) -> str:
    """Refuse names that are empty, long, or hold anything but letters, digits and `._:-`."""
    if not _is_name(value):
        raise ParameterError(
            f"{field}: expected 1 to 128 letters, digits or . _ : - (starting with a letter or "
            f"digit), got {value[:40]!r}"
        )
    return value


def check_hash(field: str, value: str) -> str:
    """Refuse what is not a SHA-256 in lower-case hexadecimal."""
    if HEX_64.fullmatch(value) is None:
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


def read_fields(
    value: Json, forms: Mapping[str, Sequence[Reader]], *, where: str
) -> dict[str, Any]:
    """The fields of a JSON object, each by its forms.

    Raises: LedgerError: no object, or fields that are missing, unknown or of another form.
    """
    if not isinstance(value, dict):
        raise LedgerError(f"{where}: expected a JSON object, got {type(value).__name__}")
    found = dict(value)
    for name, readers in forms.items():
        if name not in value:
            raise LedgerError(f"{where}: the field {name!r} is missing")
        try:
            for read in readers:
                found[name] = read(found[name])
        except ValueError as error:
            raise LedgerError(f"{where}: {name}: {error}") from error
        except LedgerError as error:
            # Of an object inside, which names the field itself.
            raise LedgerError(f"{where}: {error}") from error
    if unknown := found.keys() - forms.keys():
        raise LedgerError(f"{where}: unknown fields {sorted(unknown)}")
    return found


def forms_of(kind: type) -> Mapping[str, Sequence[Reader]]:
    """The forms of each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: get_args(hints[field.name])[1:] for field in fields(kind)}


def written_fields(record: Any) -> dict[str, Json]:
    """The fields of a dataclass as JSON; `read_fields` reads them back."""
    return {field.name: _written(getattr(record, field.name)) for field in fields(record)}


def _written(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return value.to_json() if hasattr(value, "to_json") else value
