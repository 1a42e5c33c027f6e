"""Notes of what was opened: one sum per place, whatever crashes or races."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lada_clients.auditor.opening import claim_opening
from lada_protocol.rounds.index import Attempt
from lada_secure.errors import PeerError, TransportError

FIRST, SECOND = "a" * 64, "b" * 64
STATISTICS = Attempt(round_id=0, purpose="statistics", number=0)


def test_the_same_sum_may_be_claimed_again(tmp_path: Path) -> None:
    notes = tmp_path / "opened"
    claim_opening(notes, "study", STATISTICS, FIRST)
    claim_opening(notes, "study", STATISTICS, FIRST)
    claim_opening(tmp_path / "opened", "study", STATISTICS, FIRST)
    assert [path.name for path in (tmp_path / "opened").iterdir()] == ["study-0-statistics"]


def test_another_sum_is_refused_after_a_restart_and_in_another_attempt(tmp_path: Path) -> None:
    claim_opening(tmp_path, "study", STATISTICS, FIRST)
    again = Attempt(round_id=0, purpose="statistics", number=1)
    with pytest.raises(PeerError) as caught:
        claim_opening(tmp_path, "study", again, SECOND)
    assert caught.value.reason == "already_opened"


def test_other_studies_rounds_and_purposes_have_places_of_their_own(tmp_path: Path) -> None:
    notes = tmp_path
    claim_opening(notes, "study", STATISTICS, FIRST)
    claim_opening(notes, "study-2", STATISTICS, SECOND)
    claim_opening(notes, "study", Attempt(round_id=1, purpose="statistics", number=0), SECOND)
    claim_opening(notes, "study", Attempt(round_id=0, purpose="demand", number=0), SECOND)


def test_of_many_claims_at_once_exactly_one_holds(tmp_path: Path) -> None:
    notes = tmp_path

    def claim(number: int) -> bool:
        try:
            claim_opening(notes, "study", STATISTICS, f"{number:064x}")
        except PeerError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(claim, range(32)))

    assert held.count(True) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["study-0-statistics"]


def test_a_damaged_note_refuses_every_sum(tmp_path: Path) -> None:
    (tmp_path / "study-0-statistics").write_bytes(b"")
    with pytest.raises(PeerError) as caught:
        claim_opening(tmp_path, "study", STATISTICS, FIRST)
    assert caught.value.reason == "already_opened"


def test_a_note_that_cannot_be_written_is_an_error_and_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TransportError):
        claim_opening(tmp_path / "file", "study", STATISTICS, FIRST)
