"""Canonical JSON, the one byte form that is hashed and signed.

Keys sorted, no white space, ASCII only, no NaN or infinity, floats in the shortest form that
reads back as the same binary64. SPEC.md, "Canonical JSON", states the same for other languages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from lada_secure.errors import ParameterError, PeerError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


def canonical_json(value: Json) -> bytes:
    """Encode a JSON value in canonical form.

    Raises: ParameterError: NaN, infinity, or a type that JSON does not have.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise ParameterError(f"value has no canonical JSON form: {error}") from error
    return text.encode("ascii")


def parse_canonical_json(raw: bytes, *, max_bytes: int) -> Json:
    """Decode canonical JSON and refuse every other spelling of the same value.

    Two spellings of one value would give one meaning two hashes, so a byte that was changed in
    white space or number format could pass unseen.

    Raises: PeerError: too long, not JSON, duplicate keys, or not in canonical form.
    """
    if len(raw) > max_bytes:
        raise PeerError(
            f"JSON of {len(raw)} bytes, at most {max_bytes} allowed", reason="too_large"
        )
    try:
        value: Json = json.loads(raw.decode("ascii"))
        again = canonical_json(value)
    except (ValueError, RecursionError, ParameterError) as error:
        raise PeerError(f"not canonical JSON: {error}") from error
    if again != raw:
        raise PeerError("JSON is not in canonical form")
    return value


def sha256_hex(raw: bytes) -> str:
    """SHA-256 of bytes as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(raw).hexdigest()
