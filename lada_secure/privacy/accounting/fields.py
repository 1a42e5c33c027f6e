"""Reads the fields of a parsed JSON object one by one, and refuses what is left over."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from lada_secure.canonical import Json
from lada_secure.errors import LedgerError, ParameterError

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
HEX_64 = re.compile(r"[0-9a-f]{64}")
HEX_128 = re.compile(r"[0-9a-f]{128}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")


def format_time(moment: datetime) -> str:
    """UTC with microseconds, of fixed width, so that text order is time order.

    Raises: ParameterError: a time without a zone.
    """
    if moment.tzinfo is None:
        raise ParameterError("time: expected a datetime with a time zone, got a naive one")
    return moment.astimezone(UTC).strftime(TIME_FORMAT)


def parse_time(text: str) -> datetime:
    """The inverse of `format_time`. Raises: ParameterError: any other form."""
    try:
        if TIME.fullmatch(text) is None:
            raise ValueError("wrong form")
        # Not strptime: it reads the locale under a lock, and is ten times slower.
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ParameterError(
            f"time: expected the form 2026-01-31T12:00:00.000000Z, got {text[:40]!r}"
        ) from error


def check_name(field: str, value: str) -> str:
    """Refuse names that are empty, long, or hold anything but letters, digits and `._:-`."""
    if NAME.fullmatch(value) is None:
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


def load_public_key(raw: bytes) -> Ed25519PublicKey:
    """Raises: ParameterError: not the 32 raw bytes of an Ed25519 key."""
    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise ParameterError(f"public_key: not an Ed25519 key: {error}") from error


class Fields:
    """The keys of one JSON object, each taken exactly once.

    Every method raises `LedgerError` with `where` and the field's name.
    """

    def __init__(self, value: Json, *, where: str) -> None:
        if not isinstance(value, dict):
            raise LedgerError(f"{where}: expected a JSON object, got {type(value).__name__}")
        self._left: dict[str, Json] = dict(value)
        self._where = where

    def _take(self, name: str) -> Json:
        try:
            return self._left.pop(name)
        except KeyError:
            raise LedgerError(f"{self._where}: the field {name!r} is missing") from None

    def _refuse(self, name: str, expected: str, got: Json) -> LedgerError:
        return LedgerError(f"{self._where}: {name}: expected {expected}, got {str(got)[:80]!r}")

    def text(self, name: str, *, max_length: int = 1000) -> str:
        """A string of at most `max_length` characters."""
        value = self._take(name)
        if not isinstance(value, str) or len(value) > max_length:
            raise self._refuse(name, f"text of at most {max_length} characters", value)
        return value

    def matching(self, name: str, pattern: re.Pattern[str]) -> str:
        """A string that matches a pattern as a whole."""
        value = self._take(name)
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise self._refuse(name, f"text of the form {pattern.pattern}", value)
        return value

    def time(self, name: str) -> str:
        """A time in the form of `format_time`, kept as text."""
        value = self.matching(name, TIME)
        try:
            parse_time(value)
        except ParameterError as error:
            raise self._refuse(name, "an existing date and time", value) from error
        return value

    def whole_seconds(self, name: str) -> str:
        """A time as `time` reads it, without a part of a second."""
        value = self.time(name)
        if not value.endswith(".000000Z"):
            raise self._refuse(name, "whole seconds; finer ones tell how long records took", value)
        return value

    def integer(self, name: str, *, low: int = 0, high: int = 2**53) -> int:
        """A whole number in [low, high]."""
        value = self._take(name)
        if type(value) is not int or not low <= value <= high:
            raise self._refuse(name, f"a whole number from {low} to {high}", value)
        return value

    def number(self, name: str, *, low: float = 0.0, high: float = 1e12) -> float:
        """A finite float in [low, high]."""
        value = self._take(name)
        if type(value) is not float or not math.isfinite(value) or not low <= value <= high:
            raise self._refuse(name, f"a number from {low} to {high}", value)
        return value

    def parameters(self, name: str) -> Mapping[str, float | str]:
        """An object whose values are finite floats or names."""
        value = self._take(name)
        found: dict[str, float | str] = {}
        if not isinstance(value, dict):
            raise self._refuse(name, "an object of numbers and names", value)
        for key, one in value.items():
            if isinstance(one, str):
                good = NAME.fullmatch(one) is not None
            else:
                good = type(one) is float and math.isfinite(one)
            if not good or not isinstance(one, float | str):
                raise self._refuse(f"{name}: {key[:40]}", "a finite number or a name", one)
            found[key] = one
        return found

    def names(self, name: str, *, max_names: int) -> tuple[str, ...]:
        """A list of at most `max_names` different names, sorted."""
        value = self._take(name)
        if not isinstance(value, list) or len(value) > max_names:
            raise self._refuse(name, f"a list of at most {max_names} names", value)
        found = [one for one in value if isinstance(one, str) and NAME.fullmatch(one)]
        if found != value or found != sorted(set(found)):
            raise self._refuse(name, "different names, sorted", value)
        return tuple(found)

    def raw(self, name: str) -> Json:
        """Any value, for a parser of its own."""
        return self._take(name)

    def done(self) -> None:
        """Refuse keys that nobody asked for."""
        if self._left:
            raise LedgerError(f"{self._where}: unknown fields {sorted(self._left)}")
