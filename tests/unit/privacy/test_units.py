"""Privacy units: grouping, bounding, and the fingerprint of a data set."""

from __future__ import annotations

import hashlib

import pytest

from lada_secure.data.records import Record
from lada_secure.errors import ParameterError
from lada_secure.privacy.units import Unit, bound_units, population_fingerprint

KEY = b"sixteen bytes key"


def record(record_id: str, unit: str, *, question: str = "q") -> Record:
    return Record(
        record_id=record_id, unit=unit, question=question, choices=(), answer="a", rationale=None
    )


RECORDS = tuple(record(f"r{number}", f"patient-{number % 3}") for number in range(12))


def test_each_unit_keeps_at_most_the_bound_in_hash_order() -> None:
    units = bound_units(RECORDS, max_records_per_unit=2)
    assert [unit.unit_id for unit in units] == ["patient-0", "patient-1", "patient-2"]
    for unit in units:
        own = [one.record_id for one in RECORDS if one.unit == unit.unit_id]
        own.sort(key=lambda one: hashlib.sha256(one.encode()).hexdigest())
        assert [one.record_id for one in unit.records] == own[:2]


def test_the_order_of_the_records_does_not_matter() -> None:
    assert bound_units(RECORDS, max_records_per_unit=3) == bound_units(
        RECORDS[::-1], max_records_per_unit=3
    )


def test_what_is_kept_does_not_depend_on_the_records_content() -> None:
    other = tuple(record(one.record_id, one.unit, question="another") for one in RECORDS)
    kept = [
        [r.record_id for r in unit.records] for unit in bound_units(RECORDS, max_records_per_unit=2)
    ]
    again = [
        [r.record_id for r in unit.records] for unit in bound_units(other, max_records_per_unit=2)
    ]
    assert kept == again


def test_removing_one_unit_changes_exactly_that_unit() -> None:
    with_all = bound_units(RECORDS, max_records_per_unit=2)
    without = bound_units(
        tuple(one for one in RECORDS if one.unit != "patient-1"), max_records_per_unit=2
    )
    assert without == (with_all[0], with_all[2])


@pytest.mark.parametrize(
    ("records", "bound", "field"),
    [
        pytest.param(RECORDS, 0, "max_records_per_unit", id="a bound of zero"),
        pytest.param((), 1, "records", id="no records"),
        pytest.param((record("r", " "),), 1, "unit", id="an empty unit column"),
        pytest.param((record("", "u"),), 1, "record_id", id="an empty record id"),
        pytest.param((record("r", "u"), record("r", "v")), 1, "record_id", id="a duplicate id"),
    ],
)
def test_bad_records_are_refused_with_the_field_named(
    records: tuple[Record, ...], bound: int, field: str
) -> None:
    with pytest.raises(ParameterError, match=f"^{field}: "):
        bound_units(records, max_records_per_unit=bound)


def test_a_unit_without_records_or_with_foreign_ones_is_refused() -> None:
    with pytest.raises(ParameterError, match="at least one record"):
        Unit(unit_id="u", records=())
    with pytest.raises(ParameterError, match="another privacy unit"):
        Unit(unit_id="u", records=(record("r", "v"),))
    with pytest.raises(ParameterError, match="non-empty name"):
        Unit(unit_id="", records=(record("r", ""),))


def test_the_fingerprint_depends_on_data_and_key_but_not_on_order() -> None:
    fingerprint = population_fingerprint(RECORDS, key=KEY)
    assert len(fingerprint) == 64
    assert population_fingerprint(RECORDS[::-1], key=KEY) == fingerprint
    assert population_fingerprint(RECORDS[1:], key=KEY) != fingerprint
    assert population_fingerprint(RECORDS, key=KEY + b"!") != fingerprint
    with pytest.raises(ParameterError, match=r"^key: .*got 15"):
        population_fingerprint(RECORDS, key=b"x" * 15)
