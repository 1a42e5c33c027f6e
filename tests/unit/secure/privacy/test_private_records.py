"""The door to private records opens to a reservation without an output, and to nothing else."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from ledger_world import approve, memory_ledger, statistics_spec

from lada_secure.data.records import Record
from lada_secure.errors import LocalProtocolError
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_secure.privacy.release.units import Unit

UNIT = Unit(
    unit_id="SENTINEL",
    records=(
        Record(
            record_id="SENTINEL",
            unit="SENTINEL",
            question="SENTINEL",
            choices=(),
            answer="SENTINEL",
            rationale=None,
        ),
    ),
)


def test_records_are_read_against_a_reservation_and_only_until_it_has_an_output() -> None:
    book, records = memory_ledger(), PrivateRecords([UNIT])
    approve(book)
    paid = book.reserve(statistics_spec())
    assert records.units(paid) == (UNIT,)
    book.commit(paid, b"noised")
    with pytest.raises(LocalProtocolError, match="has its output already"):
        records.units(book.reserve(statistics_spec()))


@pytest.mark.parametrize("forged", [None, object(), "reservation"])
def test_nothing_else_opens_them(forged: Any) -> None:
    with pytest.raises(LocalProtocolError, match="reserve first"):
        PrivateRecords([UNIT]).units(forged)


def test_they_are_neither_shown_nor_pickled() -> None:
    records = PrivateRecords([UNIT])
    assert "SENTINEL" not in repr(records) + repr(UNIT) + repr(UNIT.records)
    with pytest.raises(LocalProtocolError, match="never pickled"):
        pickle.dumps(records)
