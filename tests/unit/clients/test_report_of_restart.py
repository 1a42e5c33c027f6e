"""The privacy report of a ledger that was begun again shows it, and what was carried over."""

from __future__ import annotations

from pathlib import Path

from ledger_store_world import PUBLIC, approve, grant, lost_ledger, open_ledger, restart, spec

from lada_clients.audit.report import SiteReport, _releases, _restart
from lada_clients.audit.report_page import _began, _staircase
from lada_secure.privacy.entries import LedgerEntry
from lada_secure.privacy.fields import parse_time
from lada_secure.privacy.restart import RestartGrant
from lada_secure.privacy.verification import verify_ledger


def begun_again(path: Path) -> tuple[tuple[LedgerEntry, ...], RestartGrant]:
    """A ledger in place of a lost one, with a release of the same study and of another."""
    granted = grant(lost_ledger(path))
    restart(path, granted)
    with open_ledger(path) as ledger:
        for study in ("study", "second"):
            approve(ledger, study)
            ledger.commit(ledger.reserve(spec(9, study_id=study)), b"noised")
        ledger.reserve(spec(10))
        ledger.reserve(spec(10))
        return ledger.entries(), granted


def test_what_was_carried_is_no_cost_of_the_first_release(tmp_path: Path) -> None:
    entries, granted = begun_again(tmp_path / "ledger.db")
    first, second, third = _releases(entries, granted)
    assert first.epsilon_before == first.study_epsilon_before == granted.carried_epsilon
    assert first.cost == first.epsilon_after - granted.carried_epsilon
    assert second.study_epsilon_before == 0.0, "a new study had spent nothing"
    assert second.epsilon_before == first.epsilon_after
    assert (third.resumes, third.output_commitment) == (1, None)
    staircase = _staircase(
        "all", [(first, first.epsilon_before, first.epsilon_after)], parse_time(first.time), 1.0
    )
    assert staircase.points[0][1] == granted.carried_epsilon
    assert "was carried over" in staircase.points[0][2]


def test_the_page_says_who_confirmed_a_restart_and_otherwise_that_nothing_came_before(
    tmp_path: Path,
) -> None:
    entries, granted = begun_again(tmp_path / "ledger.db")
    summary = verify_ledger(entries, public_key=PUBLIC, caps=None)
    site = SiteReport.model_construct(
        site="hospital-a", started=summary.started, restart=_restart(granted)
    )
    shown = _began(site)
    for word in ("dr.weber", "ms.okafor", "auditor", "a ledger that was lost", "counted in"):
        assert word in shown
    plain = SiteReport.model_construct(site="hospital-a", started=summary.started, restart=None)
    assert "nothing was spent before" in _began(plain)
