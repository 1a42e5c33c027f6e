"""Privacy units: grouping, bounding, and the fingerprint of a data set."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lada_secure.canonical import canonical_json
from lada_secure.data.records import Record, RecordFile
from lada_secure.data.unit_ids import alike_units, canonical_unit, likeness, plain_id
from lada_secure.errors import ParameterError
from lada_secure.privacy.release.units import (
    Unit,
    bound_units,
    population_fingerprint,
    unit_faults,
)

KEY = b"sixteen bytes key"


def record(record_id: str, unit: str, *, question: str = "q") -> Record:
    return Record(
        record_id=record_id, unit=unit, question=question, choices=(), answer="a", rationale=None
    )


RECORDS = tuple(
    record(f"r{number}", f"patient-{number % 3}", question=f"question {number}")
    for number in range(12)
)


def told(one: Record) -> tuple[object, ...]:
    """What a record says, without its ids."""
    return one.question, one.choices, one.answer, one.rationale


def test_each_unit_keeps_at_most_the_bound_in_the_order_of_what_its_records_say() -> None:
    units = bound_units(RECORDS, max_records_per_unit=2)
    assert [unit.unit_id for unit in units] == ["patient-0", "patient-1", "patient-2"]
    for unit in units:
        own = [one for one in RECORDS if one.unit == unit.unit_id]
        own.sort(
            key=lambda one: hashlib.sha256(
                canonical_json([one.question, list(one.choices), one.answer, one.rationale])
            ).hexdigest()
        )
        assert list(unit.records) == own[:2]


def test_the_order_of_the_records_does_not_matter() -> None:
    assert bound_units(RECORDS, max_records_per_unit=3) == bound_units(
        RECORDS[::-1], max_records_per_unit=3
    )


def test_record_ids_that_are_positions_do_no_harm() -> None:
    def numbered(records: tuple[Record, ...]) -> tuple[Record, ...]:
        return tuple(replace(one, record_id=str(at)) for at, one in enumerate(records))

    newcomer = record("", "patient-00", question="one more person at the top of the file")
    kept = [
        [told(one) for one in unit.records]
        for unit in bound_units(numbered(RECORDS), max_records_per_unit=2)
    ]
    renumbered = bound_units(numbered((newcomer, *RECORDS)), max_records_per_unit=2)
    again = [
        [told(one) for one in unit.records] for unit in renumbered if unit.unit_id != newcomer.unit
    ]
    assert kept == again


def test_removing_one_unit_changes_exactly_that_unit() -> None:
    with_all = bound_units(RECORDS, max_records_per_unit=2)
    without = bound_units(
        tuple(one for one in RECORDS if one.unit != "patient-1"), max_records_per_unit=2
    )
    assert without == (with_all[0], with_all[2])


def test_a_bound_of_zero_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"^max_records_per_unit: "):
        bound_units(RECORDS, max_records_per_unit=0)


def test_behind_the_gate_no_record_is_refused_whatever_its_ids() -> None:
    odd = (
        record("", "u"),
        record("r", "v"),
        record("r", "w"),
        record("r", ""),
        record("r", "\ud800"),
    )
    assert bound_units((), max_records_per_unit=1) == ()
    assert [unit.unit_id for unit in bound_units(odd, max_records_per_unit=1)] == sorted(
        one.unit for one in odd
    )


def test_a_unit_without_records_or_with_foreign_ones_is_refused() -> None:
    with pytest.raises(ParameterError, match="at least one record"):
        Unit(unit_id="u", records=())
    with pytest.raises(ParameterError, match="another privacy unit"):
        Unit(unit_id="u", records=(record("r", "v"),))


# The spellings of one person in a file that came from ten departments.
SPELLINGS = (
    "M\u00fcller-17",
    "Mu\u0308ller-17",
    "M\u00fcller-17 ",
    " M\u00fcller-17",
    "M\u00fcller-17\u00a0",
    "M\u00fcller-17\u200b",
    "\ufeffM\u00fcller-17",
    "M\u00fcller-17\r",
    "m\u00dcLLER-17",
    "M\u00fcller\u201117",
    "M\u00fcller-17\ufe0f",
    "M\u00fcl\u00adler-17",
)


def file_of(*units: str) -> RecordFile:
    records = tuple(record(f"r{at}", unit, question=f"q{at}") for at, unit in enumerate(units))
    return RecordFile(
        name="records.jsonl", records=records, lines=tuple(range(1, len(records) + 1)), faults=()
    )


def test_one_person_in_many_spellings_is_one_unit_in_the_protective_reading() -> None:
    file = file_of(*SPELLINGS, "Meier-18")
    assert [len(unit.records) for unit in bound_units(file.records, max_records_per_unit=99)] == [
        1,
        len(SPELLINGS),
    ]
    apart = bound_units(file.records, max_records_per_unit=99, spellings="different_people")
    assert len(apart) == len(SPELLINGS) + 1


def test_spellings_are_refused_by_line_unless_the_policy_says_what_they_are() -> None:
    file = file_of("Meier-18", *SPELLINGS)
    (fault,) = unit_faults(file, spellings="refuse", missing_like="refuse")
    assert fault.line == 2
    assert f"one unit in {len(SPELLINGS)} spellings, lines 2, 3, 4" in fault.what
    assert "ller" not in fault.what
    for meant in ("one_person", "different_people"):
        assert unit_faults(file, spellings=meant, missing_like="refuse") == ()


@pytest.mark.parametrize(
    "unit",
    [
        *("", " ", "nan", "NaN", "NULL", "None", "n/a", "N/A ", "na", "NaT", "unknown", "missing"),
        *("-", "?", "#N/A", "<NA>", "nil", "undefined", "\u200b", "\u2013", "\uff2e\uff21"),
        *("---", "...", "#NV", "#N/A N/A", "-nan", "\\N", "k. A.", "(Leer)", "inconnu"),
    ],
)
def test_a_unit_that_looks_like_a_missing_value_is_refused_unless_it_is_meant(unit: str) -> None:
    file = file_of("patient-1", unit, "patient-2", unit)
    (fault,) = unit_faults(file, spellings="refuse", missing_like="refuse")
    assert (fault.line, "2 record(s), lines 2, 4;" in fault.what) == (2, True)
    assert unit_faults(file, spellings="refuse", missing_like="meant") == ()


@given(st.text())
def test_the_canonical_form_is_its_own_canonical_form(text: str) -> None:
    assert canonical_unit(canonical_unit(text)) == canonical_unit(text)


def test_the_fingerprint_depends_on_data_and_key_but_not_on_order() -> None:
    fingerprint = population_fingerprint(RECORDS, key=KEY)
    assert len(fingerprint) == 64
    assert population_fingerprint(RECORDS[::-1], key=KEY) == fingerprint
    assert population_fingerprint(RECORDS[1:], key=KEY) != fingerprint
    assert population_fingerprint(RECORDS, key=KEY + b"!") != fingerprint
    with pytest.raises(ParameterError, match=r"^key: .*got 15"):
        population_fingerprint(RECORDS, key=b"x" * 15)


@pytest.mark.parametrize(
    ("alike", "others"),
    [
        ({"007", "7", "7.0"}, {"8", "70"}),
        ({"patient/14", "http://kis/fhir/patient/14"}, {"patient/15"}),
        ({"http://a/patient/14", "http://b/patient/14/_history/3"}, {"group/14"}),
        ({"patient/14", "14"}, {"15"}),
        ({"p-007", "p-7"}, {"q-7"}),
        (set(), {"123/2024", "124/2024"}),
        (set(), {"1.05", "1.5"}),
    ],
)
def test_units_that_may_be_one_person_are_found(alike: set[str], others: set[str]) -> None:
    assert alike_units(alike | others) == alike


@given(st.sampled_from(["", "ward/", "http://kis/fhir/Patient/"]), st.integers(0, 9999))
def test_the_filter_of_an_import_makes_one_unit_of_what_is_warned_of(before: str, own: int) -> None:
    forms = [f"{before}{own}", f"{before}{own:07d}", f"{before}{own}.0", str(own)]
    assert {plain_id(one) for one in forms} == {str(own)}
    assert len({likeness(canonical_unit(one))[1] for one in forms}) == 1
    assert alike_units(map(canonical_unit, forms)) == set(map(canonical_unit, forms))
