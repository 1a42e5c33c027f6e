"""Privacy units: which records belong to one patient or customer, and how many of them count."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from lada_secure.canonical import canonical_json
from lada_secure.data.record_faults import Fault, lines_text
from lada_secure.data.records import Record, RecordFile, record_line
from lada_secure.data.unit_ids import MissingLike, Spellings, canonical_unit, names_nobody
from lada_secure.errors import ParameterError

MIN_FINGERPRINT_KEY_BYTES = 16


def unit_faults(
    file: RecordFile, *, spellings: Spellings, missing_like: MissingLike
) -> tuple[Fault, ...]:
    """Units that are perhaps not what they seem: one person in several spellings, or no person.

    Either would void the guarantee: ten spellings of one person are protected as ten people, and
    all records without a person as one. The messages name lines, never ids.
    """
    faults: list[Fault] = []
    groups: dict[str, dict[str, list[int]]] = {}
    for record, line in zip(file.records, file.lines, strict=True):
        spelled = groups.setdefault(canonical_unit(record.unit), {})
        spelled.setdefault(record.unit, []).append(line)
    for canonical, spelled in groups.items():
        lines = sorted(line for found in spelled.values() for line in found)
        if names_nobody(canonical) and missing_like == "refuse":
            faults.append(
                Fault(
                    line=lines[0],
                    what=f"the unit looks like a missing value in {len(lines)} record(s), lines "
                    f"{lines_text(lines)}; name the person, or say [units] missing_like = "
                    '"meant" in the policy',
                )
            )
        elif len(spelled) > 1 and spellings == "refuse":
            faults.append(
                Fault(
                    line=lines[0],
                    what=f"one unit in {len(spelled)} spellings, lines {lines_text(lines)}; spell "
                    'it alike, or say [units] spellings = "one_person" (or "different_people") in '
                    "the policy",
                )
            )
    return tuple(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """All records that count for one privacy unit, in the order of `bound_units`.

    Adding or removing one `Unit` as a whole is what the guarantee hides.

    Raises: ParameterError: no records, a record of another unit.
    """

    unit_id: str
    records: tuple[Record, ...]

    def __post_init__(self) -> None:
        if not self.records:
            raise ParameterError("records: a privacy unit needs at least one record, got none")
        own = canonical_unit(self.unit_id)
        if any(
            record.unit != self.unit_id and canonical_unit(record.unit) != own
            for record in self.records
        ):
            raise ParameterError("records: a record of another privacy unit was put into this one")

    def __repr__(self) -> str:
        return f"Unit(..., {len(self.records)} records)"


def _rank(record: Record) -> bytes:
    told = [record.question, list(record.choices), record.answer, record.rationale]
    return hashlib.sha256(canonical_json(told)).digest()


def bound_units(
    records: Sequence[Record], *, max_records_per_unit: int, spellings: Spellings = "one_person"
) -> tuple[Unit, ...]:
    """Group records by privacy unit and keep at most `max_records_per_unit` of each.

    Within a unit, records stand in the order of SHA-256 of what they say (question, choices,
    answer, rationale; equal ones in any order, for they are equal) and the first ones are kept. No
    record id takes part: where ids are positions in a file, one more person in front renumbers all
    records behind, and a rule on ids would keep other records of other people. So adding or
    removing one unit changes exactly one element of the result, whatever the ids are.

    Total: no record is refused here, whatever it holds; `record_faults` and `unit_faults` refuse
    files before a study is joined.

    Args: records: any order. max_records_per_unit: >= 1. spellings: units are compared in
        canonical form (`canonical_unit`), the protective reading; as they are spelled only where
        the site's policy says that different spellings are different people.
    Returns: units sorted by `unit_id`, each with 1 to `max_records_per_unit` records.
    Raises: ParameterError: bound below 1.
    """
    if max_records_per_unit < 1:
        raise ParameterError(f"max_records_per_unit: expected >= 1, got {max_records_per_unit}")
    groups: dict[str, list[Record]] = {}
    for record in records:
        apart = spellings == "different_people"
        unit_id = record.unit if apart else canonical_unit(record.unit)
        groups.setdefault(unit_id, []).append(record)
    return tuple(
        Unit(
            unit_id=unit_id,
            records=tuple(sorted(groups[unit_id], key=_rank)[:max_records_per_unit]),
        )
        for unit_id in sorted(groups)
    )


def population_fingerprint(records: Sequence[Record], *, key: bytes) -> str:
    """HMAC-SHA256 over the data set: a site can tell that its data changed between two studies.

    It never leaves the site: two equal or different fingerprints would say whether a record
    changed. Keyed, because a bare hash of few or guessable records could be confirmed by whoever
    guesses them and sees the file.

    Args: records: any order; the result does not depend on it. key: >= 16 secret bytes.
    Returns: 64 lower-case hexadecimal digits.
    Raises: ParameterError: key too short.
    """
    if len(key) < MIN_FINGERPRINT_KEY_BYTES:
        raise ParameterError(
            f"key: expected at least {MIN_FINGERPRINT_KEY_BYTES} secret bytes, got {len(key)}"
        )
    mac = hmac.new(key, b"lada/population/1/", hashlib.sha256)
    for line in sorted(record_line(record).removesuffix(b"\n") for record in records):
        mac.update(len(line).to_bytes(8, "big"))
        mac.update(line)
    return mac.hexdigest()
