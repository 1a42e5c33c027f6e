"""Privacy units: which records belong to one patient or customer, and how many of them count."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lada_secure.canonical import canonical_json
from lada_secure.data.records import Record
from lada_secure.errors import ParameterError

MIN_FINGERPRINT_KEY_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """All records that count for one privacy unit, in the order of `bound_units`.

    Adding or removing one `Unit` as a whole is what the guarantee hides.

    Raises: ParameterError: empty `unit_id`, no records, a record of another unit.
    """

    unit_id: str
    records: tuple[Record, ...]

    def __post_init__(self) -> None:
        if not self.unit_id.strip():
            raise ParameterError("unit_id: expected a non-empty name, got an empty one")
        if not self.records:
            raise ParameterError("records: a privacy unit needs at least one record, got none")
        if any(record.unit != self.unit_id for record in self.records):
            raise ParameterError("records: a record of another privacy unit was put into this one")


def _rank(record: Record) -> tuple[bytes, str]:
    return hashlib.sha256(record.record_id.encode("utf-8")).digest(), record.record_id


def bound_units(records: Sequence[Record], *, max_records_per_unit: int) -> tuple[Unit, ...]:
    """Group records by privacy unit and keep at most `max_records_per_unit` of each.

    Within a unit, records stand in the order of SHA-256 of their `record_id` and the first ones
    are kept. The rule looks at ids only: neither a record's content nor any other unit decides
    what is kept, so adding or removing one unit changes exactly one element of the result.

    Args: records: any order; `record_id` unique. max_records_per_unit: >= 1.
    Returns: units sorted by `unit_id`, each with 1 to `max_records_per_unit` records.
    Raises: ParameterError: no records, empty unit or record id, duplicate ids, bound below 1.
    """
    if max_records_per_unit < 1:
        raise ParameterError(f"max_records_per_unit: expected >= 1, got {max_records_per_unit}")
    if not records:
        raise ParameterError("records: expected at least one record, got none")
    groups: dict[str, list[Record]] = {}
    seen: set[str] = set()
    for position, record in enumerate(records):
        if not record.unit.strip():
            raise ParameterError(
                f"unit: record number {position + 1} has an empty privacy unit; every record "
                "needs the patient or customer it belongs to"
            )
        if not record.record_id:
            raise ParameterError(f"record_id: record number {position + 1} has an empty id")
        if record.record_id in seen:
            raise ParameterError(
                f"record_id: record number {position + 1} repeats the id of an earlier record; "
                "ids must be unique"
            )
        seen.add(record.record_id)
        groups.setdefault(record.unit, []).append(record)
    return tuple(
        Unit(
            unit_id=unit_id,
            records=tuple(sorted(groups[unit_id], key=_rank)[:max_records_per_unit]),
        )
        for unit_id in sorted(groups)
    )


def population_fingerprint(records: Sequence[Record], *, key: bytes) -> str:
    """HMAC-SHA256 over the data set, for the ledger: equal data give equal fingerprints.

    Keyed, because a bare hash of few or guessable records could be confirmed by anybody who
    guesses them. The key stays at the site.

    Args: records: any order; the result does not depend on it. key: >= 16 secret bytes.
    Returns: 64 lower-case hexadecimal digits.
    Raises: ParameterError: key too short.
    """
    if len(key) < MIN_FINGERPRINT_KEY_BYTES:
        raise ParameterError(
            f"key: expected at least {MIN_FINGERPRINT_KEY_BYTES} secret bytes, got {len(key)}"
        )
    mac = hmac.new(key, b"lada/population/1/", hashlib.sha256)
    for line in sorted(canonical_json(asdict(record)) for record in records):
        mac.update(len(line).to_bytes(8, "big"))
        mac.update(line)
    return mac.hexdigest()
