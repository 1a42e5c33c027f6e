"""Noised whole-number vectors as the bytes that a ledger hashes and keeps for retries."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lada_secure.arrays import IntArray
from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.errors import LedgerError, PeerError

# Sign, digits and comma of a number below 2^63.
_ENTRY_BYTES = 21


def vector_bytes(vector: IntArray) -> bytes:
    """Canonical bytes of a vector."""
    return canonical_json({"version": 1, "vector": vector.tolist()})


def parse_vector(raw: bytes, *, what: str, length: int, bound: int) -> IntArray:
    """Read what `vector_bytes` wrote, (length,) int64, every entry within `bound` of 0.

    Args: what: names the release in messages.
    Raises: LedgerError: other bytes: the plan changed under the ledger, or it is damaged.
    """
    try:
        value = parse_canonical_json(raw, max_bytes=_ENTRY_BYTES * length + 64)
    except PeerError as error:
        raise LedgerError(f"stored {what}: {error}") from error
    if not isinstance(value, Mapping) or set(value) != {"version", "vector"}:
        raise LedgerError(f"stored {what}: expected the keys 'version' and 'vector'")
    entries = value["vector"]
    if value["version"] != 1 or not isinstance(entries, list):
        raise LedgerError(f"stored {what}: expected version 1 and a list of numbers")
    if not all(type(entry) is int and abs(entry) <= bound for entry in entries):
        raise LedgerError(f"stored {what}: expected whole numbers within {bound} of 0")
    if len(entries) != length:
        raise LedgerError(
            f"stored {what}: expected {length} entries, got {len(entries)}; the plan's clusters "
            "differ from those of the release"
        )
    return np.array(entries, dtype=np.int64)
