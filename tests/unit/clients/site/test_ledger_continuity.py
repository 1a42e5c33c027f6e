"""One ledger over studies, keys and accidents: how its file begins, goes on and begins again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ledger_store_world import (
    AUDITOR,
    CAPS,
    NEW_KEY,
    PUBLIC,
    approve,
    grant,
    lost_ledger,
    open_ledger,
    restart,
    spec,
)

from lada_clients.site.ledger.store import DataNote, open_ledger_reader
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.ledger.entries import RestartEntry
from lada_secure.privacy.ledger.verification import verify_ledger

RENEWED = NEW_KEY.public_key().public_bytes_raw()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def rows(path: Path, question: str) -> list[Any]:
    """What the file holds, read by anybody who has it."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(question).fetchall()


# --- beginning --------------------------------------------------------------------------------


def test_a_new_file_says_that_its_budget_starts_at_zero_and_an_old_one_does_not(path: Path) -> None:
    with open_ledger(path) as ledger:
        assert ledger.started_now
        identity = ledger.identity
        assert [entry.kind for entry in ledger.entries()] == ["start"]
    with open_ledger(path) as ledger:
        assert not ledger.started_now
        assert ledger.identity == identity
    path.unlink()
    with open_ledger(path) as ledger:
        assert ledger.started_now
        assert ledger.identity.ledger_id != identity.ledger_id, "a new file is another ledger"


def test_of_two_that_open_a_new_file_one_has_started_it(path: Path) -> None:
    with open_ledger(path) as first, open_ledger(path) as second:
        assert (first.started_now, second.started_now) == (True, False)
        assert first.head() == second.head()


def test_a_beginning_that_breaks_off_leaves_no_ledger_behind(path: Path) -> None:
    def broken() -> datetime:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_ledger(path, clock=broken)
    assert rows(path, "SELECT count(*) FROM sqlite_master") == [(0,)]
    with open_ledger(path) as ledger:
        assert ledger.started_now
        assert ledger.head().index == 0


# --- keys -------------------------------------------------------------------------------------


def test_another_key_is_refused_with_what_to_do_and_the_file_is_left_alone(path: Path) -> None:
    open_ledger(path).close()
    before = path.read_bytes()
    words = r"its key in force is .*`lada site renew-key`.* put the right identity back"
    with pytest.raises(LedgerError, match=words):
        open_ledger(path, key=NEW_KEY)
    assert path.read_bytes() == before


def test_a_renewed_key_goes_on_with_the_file_and_the_old_one_no_longer(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        ledger.commit(ledger.reserve(spec()), b"noised")
        spent = ledger.epsilon_spent(1e-6)
        ledger.renew_key(NEW_KEY, decided_by="dr.weber")
        ledger.reserve(spec(1))
    with open_ledger(path, key=NEW_KEY) as ledger:
        assert ledger.public_key == RENEWED
        assert ledger.epsilon_spent(1e-6) > spent
        assert ledger.stored_output(spec().key) == b"noised"
        approve(ledger, "second")
        ledger.reserve(spec(study_id="second"))
        verify_ledger(ledger.entries(), public_key=RENEWED, caps=CAPS)
    with pytest.raises(LedgerError, match="renew-key"):
        open_ledger(path)
    with open_ledger_reader(path) as reader:
        assert reader.public_key == RENEWED


def test_a_process_that_still_has_the_old_key_writes_nothing(path: Path) -> None:
    with open_ledger(path) as first, open_ledger(path) as second:
        approve(first)
        paid = second.reserve(spec())
        first.renew_key(NEW_KEY, decided_by="dr.weber")
        before = first.export_lines()
        with pytest.raises(LedgerError, match="its key in force is"):
            second.reserve(spec(1))
        with pytest.raises(LedgerError, match="its key in force is"):
            second.commit(paid, b"noised")
        assert second.export_lines() == before
        first.commit(paid, b"noised")


# --- beginning again --------------------------------------------------------------------------


def test_a_lost_ledger_begins_again_with_what_it_had_cost(path: Path) -> None:
    lines = lost_ledger(path)
    granted = grant(lines)
    restart(path, granted)
    with open_ledger(path) as ledger:
        assert not ledger.started_now, "it was begun by command, and not by opening it"
        (first,) = ledger.entries()
        assert isinstance(first, RestartEntry)
        assert first.grant == granted
        assert ledger.epsilon_spent(1e-6) == pytest.approx(granted.carried_epsilon)
        approve(ledger, "second")
        entry = ledger.reserve(spec(study_id="second")).entry
        assert entry.epsilon_after > granted.carried_epsilon > 0
        verify_ledger(ledger.entries(), public_key=PUBLIC, caps=CAPS, auditor_key=AUDITOR)
    with open_ledger(path) as ledger, open_ledger_reader(path) as reader:
        assert reader.identity == ledger.identity
        assert reader.identity.ledger_id == granted.ledger_id


def test_a_ledger_that_is_there_is_not_begun_again(path: Path) -> None:
    granted = grant(lost_ledger(path))
    with open_ledger(path) as ledger:
        before = ledger.export_lines()
    with pytest.raises(LedgerError, match="there is a ledger in this file already"):
        restart(path, granted)
    with open_ledger(path) as ledger:
        assert ledger.export_lines() == before


def test_a_grant_of_another_auditor_or_for_another_key_begins_nothing(path: Path) -> None:
    lines = lost_ledger(path)
    with pytest.raises(LedgerError, match="not by the auditor's key"):
        restart(path, grant(lines), auditor_key=RENEWED)
    assert not path.exists()
    with pytest.raises(LedgerError, match="it was granted to the key"):
        restart(path, grant(lines, public_key=RENEWED))
    assert rows(path, "SELECT count(*) FROM sqlite_master") == [(0,)]
    restart(path, grant(lines))


# --- what stays at the site -------------------------------------------------------------------


def test_a_site_is_told_when_its_data_changed_between_two_studies(path: Path) -> None:
    first, changed = "1" * 64, "2" * 64
    with open_ledger(path) as ledger:
        assert ledger.note_data("study-1", first) is None
        assert ledger.note_data("study-1", changed) is None
    with open_ledger(path) as ledger:
        told = ledger.note_data("study-2", changed)
        assert told == DataNote(study_id="study-1", fingerprint=first), "the first note stays"
        assert ledger.note_data("study-1", changed) is None, "study-2 began after it"
        told = ledger.note_data("study-3", changed)
        assert told == DataNote(study_id="study-2", fingerprint=changed)


@pytest.mark.parametrize(("study", "fingerprint"), [("a b", "1" * 64), ("study", "1" * 63)])
def test_a_note_that_is_none_is_refused(path: Path, study: str, fingerprint: str) -> None:
    with open_ledger(path) as ledger:
        with pytest.raises(ParameterError):
            ledger.note_data(study, fingerprint)
        assert ledger.note_data("study-2", "1" * 64) is None


def test_nothing_that_stays_at_the_site_is_in_the_export(path: Path) -> None:
    moment = datetime(2026, 3, 4, 5, 6, 7, 891234, tzinfo=UTC)
    with open_ledger(path, clock=lambda: moment) as ledger:
        ledger.note_data("study", "f1" * 32)
        ledger.decide(
            "approve",
            study_id="study",
            plan_hash="a" * 64,
            expires=datetime(2026, 3, 5, tzinfo=UTC),
            decided_by="policy",
        )
        ledger.commit(ledger.reserve(spec()), b"a noised output of some length")
        exported = ledger.export_lines()
    ((salt,),) = rows(path, "SELECT salt FROM outputs")
    ((last_write,),) = rows(path, "SELECT value FROM notes WHERE name = 'last_write'")
    assert len(salt) == 32
    assert last_write == "2026-03-04T05:06:07.891234Z"
    for kept in (salt, salt.hex().encode(), b"f1" * 32, b".891234Z", b":07.", b"noised output"):
        assert kept not in exported
    assert exported.count(b'"time":"2026-03-04T05:06:00.000000Z"') == 4


def test_every_output_has_its_own_salt(path: Path) -> None:
    with open_ledger(path) as ledger:
        approve(ledger)
        for round_id in range(5):
            ledger.commit(ledger.reserve(spec(round_id)), b"the same bytes")
        commitments = {getattr(entry, "output_commitment", "") for entry in ledger.entries()}
    assert len(rows(path, "SELECT DISTINCT salt FROM outputs")) == 5
    assert len(commitments) == 6


def test_a_clock_set_back_by_less_than_a_time_step_is_noticed_by_the_next_process(
    path: Path,
) -> None:
    moment = datetime(2026, 3, 4, 5, 6, 50, tzinfo=UTC)
    open_ledger(path, clock=lambda: moment).close()
    earlier = moment - timedelta(seconds=30)
    with open_ledger(path, clock=lambda: earlier) as ledger:
        before = ledger.export_lines()
        with pytest.raises(LedgerError, match="clock was set back by 30 s"):
            approve(ledger)
        assert ledger.export_lines() == before


def test_a_note_of_the_clock_that_was_edited_is_an_error(path: Path) -> None:
    open_ledger(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE notes SET value = 'yesterday'")
    with open_ledger(path) as ledger, pytest.raises(LedgerError, match="changed on disk"):
        approve(ledger)
