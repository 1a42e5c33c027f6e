"""A site's own view of its ledger: what is spent and left, and its export."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from ledger_store_world import CAPS, approve, open_ledger, spec

from lada_clients.site.ledger.budget import export_ledger, read_budget
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.ledger.entries import parse_ledger_lines


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """The settings of a site that was never online: nothing but the ledger is looked at."""
    (tmp_path / "policy.toml").write_text(
        f"""
        roster_sha256 = "{"0" * 64}"
        population = "patients"
        target_delta = 1e-5
        epsilon_cap_per_study = 2.0
        epsilon_cap_total = 3.0
        max_records_per_unit = 4
        """
    )
    path = tmp_path / "site.toml"
    path.write_text(
        """
        party = "hospital-a"
        coordinator = "coordinator.example:7443"
        identity = "identity"
        roster = "roster.json"
        policy = "policy.toml"
        state_dir = "state"
        records = "records.jsonl"
        cache_dir = "cache"
        [model]
        slm = "slm"
        """
    )
    (tmp_path / "state").mkdir()
    return path


def _spend(settings: Path) -> bytes:
    """Two committed releases and one that crashed; returns the ledger's own export."""
    with open_ledger(settings.parent / "state" / "ledger-patients.sqlite") as ledger:
        approve(ledger)
        for round_id in range(2):
            ledger.commit(ledger.reserve(spec(round_id)), b"noised")
        ledger.reserve(spec(2))
        return ledger.export_lines()


def test_it_says_what_is_spent_by_whom_and_what_is_left(settings: Path) -> None:
    _spend(settings)
    budget = read_budget(settings)
    told = budget.to_json()
    # The ledger counts at the delta that it was opened with, the smaller one here.
    spent = epsilon([spec().event] * 3, target_delta=CAPS.target_delta)
    assert told["epsilon"] == pytest.approx(spent, abs=1e-9)
    assert told["target_delta"] == CAPS.target_delta
    assert told["epsilon_left"] == pytest.approx(3.0 - spent)
    assert (told["reservations"], told["uncommitted"]) == (3, 1)
    assert [(one["study_id"], one["commits"]) for one in told["studies"]] == [("study", 2)]
    assert f"epsilon {spent:.4f} of 3 is spent" in budget.sentences()[0]


def test_the_export_is_the_ledger_and_overwrites_nothing(settings: Path, tmp_path: Path) -> None:
    lines = _spend(settings)
    out = tmp_path / "ledger.jsonl"
    export_ledger(read_budget(settings), out)
    assert out.read_bytes() == lines
    assert len(parse_ledger_lines(lines)) == 7
    with pytest.raises(ParameterError, match="is there already"):
        export_ledger(read_budget(settings), out)


def test_a_site_without_a_ledger_is_told_so(settings: Path) -> None:
    with pytest.raises(ParameterError, match="no ledger of population patients"):
        read_budget(settings)


def test_a_changed_entry_is_an_error_that_names_it(settings: Path) -> None:
    _spend(settings)
    path = settings.parent / "state" / "ledger-patients.sqlite"
    with sqlite3.connect(path) as connection:
        (line,) = connection.execute("SELECT line FROM entries WHERE number = 4").fetchone()
        changed = line.replace(b'"round_id":1', b'"round_id":7')
        assert changed != line
        # Whoever owns the file can take the guard away, and still not forge what it guarded.
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE entries SET line = ? WHERE number = 4", (changed,))
    with pytest.raises(LedgerError, match="entry 4"):
        read_budget(settings)
