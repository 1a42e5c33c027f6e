"""Released values: nobody can make one, change one or smuggle one in."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from ledger_world import approve, memory_ledger, statistics_spec, training_spec
from mypy import api

from lada_secure.errors import LedgerError, LocalProtocolError, PrivacyBudgetExceeded
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.terms import BudgetCaps, ReleaseSpec, Reservation
from lada_secure.privacy.released import Released, post_process, require_released


def ledger() -> MemoryLedger:
    book = memory_ledger()
    approve(book)
    return book


def release(book: MemoryLedger, spec: ReleaseSpec, text: str) -> Released[str]:
    return book.release(
        spec, compute=lambda _paid: text, encode=lambda value: value.encode(), decode=bytes.decode
    )


def test_a_released_value_knows_what_paid_for_it() -> None:
    book = ledger()
    released = release(book, statistics_spec(), "noised")
    assert released.value == "noised"
    assert released.label == "statistics"
    assert released.paid_by == book.entries()[2].entry_hash
    assert "noised" not in repr(released)


@pytest.mark.parametrize("seal", [None, object(), "_SEAL"])
def test_calling_the_class_is_refused_at_run_time(seal: Any) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be made directly"):
        Released(seal, "raw", "0" * 64, "statistics")


def test_a_released_value_cannot_be_changed_copied_pickled_or_subclassed() -> None:
    released = release(ledger(), statistics_spec(), "noised")
    with pytest.raises(LocalProtocolError, match="immutable"):
        cast(Any, released).value = "raw"
    with pytest.raises(LocalProtocolError, match="immutable"):
        del cast(Any, released).value
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(LocalProtocolError, match="pickled or copied"):
            cast(Any, attempt)(released)
    with pytest.raises(LocalProtocolError, match="subclassed"):
        type("Forged", (Released,), {})


def test_a_released_array_is_read_only_and_nobody_elses() -> None:
    start = release(ledger(), statistics_spec(), "1 2 3")
    mine = np.array([1, 2, 3])
    released = post_process(start, lambda _: mine)
    mine[0] = 99
    assert released.value.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        released.value[0] = 99


def test_post_processing_costs_nothing_and_keeps_the_receipt() -> None:
    book = ledger()
    released = release(book, statistics_spec(), "1 2 3")
    before = book.epsilon_spent(1e-6)
    total = post_process(released, lambda text: sum(map(int, text.split())), label="picks")
    assert total.value == 6
    assert total.label == "picks"
    assert total.paid_by == released.paid_by
    assert post_process(released, len).label == "statistics"
    assert book.epsilon_spent(1e-6) == before


def test_a_computation_gets_the_reservation_that_pays_for_it_and_runs_once() -> None:
    book = ledger()
    given: list[Reservation] = []

    def compute(paid: Reservation) -> str:
        given.append(paid)
        return "a"

    for _ in range(2):
        book.release(training_spec(), compute=compute, encode=str.encode, decode=bytes.decode)
    (paid,) = given
    assert paid.entry == book.entries()[-2]
    assert paid.stored_output is None


def test_a_computation_that_fails_releases_nothing_and_its_retry_pays_nothing() -> None:
    book = ledger()

    def fail(_paid: Reservation) -> str:
        raise MemoryError

    with pytest.raises(MemoryError):
        book.release(training_spec(), compute=fail, encode=str.encode, decode=bytes.decode)
    spent = book.epsilon_spent(1e-6)
    assert spent > 0
    assert release(book, training_spec(), "noised").value == "noised"
    assert book.epsilon_spent(1e-6) == spent
    assert [one.kind for one in book.entries()[2:]] == ["reserve", "resume", "commit"]


def test_a_commit_hands_out_what_it_kept() -> None:
    book = ledger()
    paid = book.reserve(training_spec())
    released = book.commit(paid, b"noised")
    assert (released.value, released.paid_by) == (b"noised", paid.entry_hash)
    assert released.label == "training"
    assert book.stored_output(training_spec().key) == b"noised"


def test_nothing_is_handed_out_that_the_book_did_not_keep() -> None:
    book = ledger()
    paid = book.reserve(training_spec())
    book.commit(paid, b"noised")
    with pytest.raises(LedgerError, match="committed another output already"):
        book.commit(paid, b"raw")


@pytest.mark.parametrize("raw", ["raw", None, np.zeros(3), ("released",)])
def test_a_plain_value_is_refused_wherever_a_released_one_is_needed(raw: Any) -> None:
    with pytest.raises(LocalProtocolError, match="expected a Released value"):
        require_released(raw, what="statistics message")
    with pytest.raises(LocalProtocolError, match="expected a Released value"):
        post_process(raw, lambda value: value)
    require_released(release(ledger(), statistics_spec(), "noised"), what="message")


def test_over_the_cap_nothing_is_computed() -> None:
    caps = BudgetCaps(target_delta=1e-6, total_epsilon=0.1, study_epsilon=0.1)
    book = memory_ledger(caps=caps)
    approve(book)

    def compute(_paid: Reservation) -> str:
        raise AssertionError("a record was touched")

    with pytest.raises(PrivacyBudgetExceeded):
        book.release(statistics_spec(), compute=compute, encode=str.encode, decode=bytes.decode)
    assert len(book.entries()) == 2


def test_mypy_refuses_a_made_up_released_value_and_a_plain_one(tmp_path: Path) -> None:
    program = tmp_path / "forged.py"
    program.write_text(
        "from lada_secure.privacy.released import Released\n"
        "def send(statistics: Released[int]) -> None: ...\n"
        "send(3)\n"
        "send(Released(3))\n"
        "send(Released(object(), 3, '', ''))\n"
        "def forward(statistics: Released[int]) -> None:\n"
        "    send(statistics)\n"
    )
    root = Path(__file__).resolve().parents[4]
    settings = tmp_path / "mypy.ini"
    # Without numpy's large stubs this takes seconds; Released's own types do not need them.
    settings.write_text(
        f"[mypy]\nmypy_path = {root}\nfollow_imports = silent\n"
        "[mypy-numpy.*,cryptography.*]\nfollow_imports = skip\n"
    )
    output, _, status = api.run(
        ["--config-file", str(settings), "--cache-dir", str(tmp_path / "cache"), str(program)]
    )
    assert status == 1
    lines = {int(line.split(":")[1]) for line in output.splitlines() if ": error:" in line}
    assert lines == {3, 4, 5}, output
