"""How a site ends: what it shows the auditor first, what it tells the others, and its exit."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from protocol_world import make_cast, signed, statistics_spec, training_spec
from reviewing_site import PLAN, Reviewing, reviewing

from lada_clients.net.failures import UnfitStudy, tell_failed, told_as, told_by
from lada_clients.site.gates import model as gate
from lada_clients.site.gates.files import RecordsChanged
from lada_clients.site.gates.slm import ModelChanged
from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.rounds.endings import MOST_ENDINGS, ended_parties
from lada_protocol.rounds.index import Attempt
from lada_protocol.run_loop import StudyFailed
from lada_secure.data.record_faults import Fault
from lada_secure.errors import (
    DiskError,
    LadaError,
    LedgerError,
    LocalProtocolError,
    ParameterError,
    PeerError,
    PrivacyBudgetExceeded,
    TrainingFailed,
    TransportError,
)
from lada_secure.method.plan import TRAINING
from lada_secure.storage.whole_files import write_atomically

CAST = make_cast()


def say(
    site: Reviewing, kind: Kind, sender: str, body: Mapping[str, Any] | None = None, **place: Any
) -> str:
    """Put a message of somebody else on the board. Returns: its payload's hash."""
    payload = b"{}" if kind is Kind.TRANSCRIPT else b""
    one = signed(
        CAST.roster, CAST.keys[sender], PLAN, kind, sender, dict(body or {}), payload, **place
    )
    site.board.post(one, payload)
    return one.header.payload_sha256


def receipt(site: Reviewing, head: int, **place: Any) -> None:
    entry = site.book.entries()[head]
    body = {"head_index": head, "head_hash": entry.entry_hash}
    say(site, Kind.RECEIPT, "auditor", body, to="site-a", **place)


def accepted(folder: Path) -> Reviewing:
    """A site that was admitted, and has paid for a round's statistics and shown them."""
    site = reviewing(folder, cap=8.0)
    site.site._review()
    acceptance = site.site.participant.index.find(Kind.ACCEPTANCE, sender="site-a")
    assert acceptance is not None
    receipt(site, 1)
    body = {"acceptance": acceptance.message_hash, "known_entries": 0}
    say(site, Kind.ADMISSION, "auditor", body, to="site-a")
    site.book.commit(site.book.reserve(statistics_spec(PLAN, 0)), b"noised")
    site.site._post_ledger(0, "statistics")
    receipt(site, 3, purpose="statistics")
    return site


def without_it(site: Reviewing, *, rounds: int = PLAN.rounds) -> None:
    """The others go through the study."""
    sites = ("site-b", "site-c")
    for round_id in range(rounds):
        for other in sites:
            say(site, Kind.TRAINED, other, {"paid_by": "0" * 64}, round_id=round_id)
        digest = say(site, Kind.TRANSCRIPT, "coordinator", {"messages": 1}, round_id=round_id)
        for party in ("coordinator", "auditor", *sites):
            body = {"transcript_sha256": digest}
            say(site, Kind.CLOSE, party, body, round_id=round_id)
    say(site, Kind.FINISHED, "coordinator", {"rounds": rounds})


def test_a_site_that_missed_a_round_shows_what_it_spent_on_it_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lada_clients.site.ledger.shown.GOODBYE_S", 0.0)
    site = accepted(tmp_path)
    # Killed after training was paid for, before the auditor was shown it; the others went on.
    site.book.commit(site.book.reserve(training_spec(PLAN, 0)), b"adapters")
    spent = site.book.epsilon_spent(PLAN.privacy.target_delta, study_id=PLAN.study_id)
    without_it(site)

    with pytest.raises(StudyFailed, match="2 sites have trained, 3 are needed") as ended:
        site.site.run()

    me = site.site.participant
    shown = me.index.find(Kind.LEDGER, sender="site-a", purpose=TRAINING)
    assert shown is not None
    assert shown.header.body["head_index"] == site.book.entries()[-1].index
    said = str(ended.value)
    assert "the auditor has not countersigned 1 reservations" in said
    assert f"it says epsilon {spent:.3f} of this study" in said
    assert ended.value.told is FailureCode.LEDGER_NOT_SHOWN


def test_a_site_whose_ledger_is_countersigned_to_its_end_says_nothing_of_it(
    tmp_path: Path,
) -> None:
    site = accepted(tmp_path)
    site.book.commit(site.book.reserve(training_spec(PLAN, 0)), b"adapters")
    site.site._post_ledger(0, TRAINING)
    receipt(site, site.book.entries()[-1].index, purpose=TRAINING)
    site.site.participant.sync()
    assert site.site._ledger.not_countersigned() == ""
    assert site.site._ledger.unshown() is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DiskError("x"), FailureCode.DISK),
        (LedgerError("x"), FailureCode.LEDGER),
        (PrivacyBudgetExceeded("x"), FailureCode.OVER_BUDGET),
        (TrainingFailed("x"), FailureCode.TRAINING),
        (PeerError("x"), FailureCode.BAD_MESSAGE),
        (ModelChanged("x"), FailureCode.MODEL_CHANGED),
        (UnfitStudy("x", told=FailureCode.MEMORY), FailureCode.MEMORY),
        (StudyFailed("x"), None),
        (StudyFailed("x", told=FailureCode.MISSED_ROUND), FailureCode.MISSED_ROUND),
        # A file of records that changed is a fact about records, as a defect may be.
        (RecordsChanged("x"), FailureCode.UNTOLD),
        (ParameterError("x"), FailureCode.UNTOLD),
        (TransportError("x"), FailureCode.UNTOLD),
        (LocalProtocolError("x"), FailureCode.UNTOLD),
        (ValueError("x"), FailureCode.UNTOLD),
    ],
)
def test_each_error_is_told_by_a_code_of_the_list_and_by_nothing_else(
    error: Exception, code: FailureCode | None
) -> None:
    assert told_by(error) == code


def endings(site: Reviewing) -> list[dict[str, Any]]:
    return [
        dict(one.header.body)
        for one, _ in site.board.rows
        if one.kind is Kind.FAILED and one.header.sender == "site-a"
    ]


def test_before_its_acceptance_a_site_tells_nothing_that_a_record_can_cause(
    tmp_path: Path,
) -> None:
    site = reviewing(tmp_path, cap=8.0)
    me = site.site.participant
    for error in (ParameterError("records.jsonl:7: too long"), RecordsChanged("x"), ValueError()):
        tell_failed(me, error)
    assert endings(site) == []
    tell_failed(me, UnfitStudy("the pool", told=FailureCode.DOES_NOT_FIT))
    assert endings(site) == [{"code": "does_not_fit", "message": ""}]


def test_after_its_acceptance_whatever_ends_a_site_is_told_without_a_word_of_it(
    tmp_path: Path,
) -> None:
    site = accepted(tmp_path)
    tell_failed(site.site.participant, RecordsChanged("records.jsonl was changed"))
    assert endings(site) == [{"code": "untold", "message": ""}]


def test_an_ending_is_told_without_a_disk_and_bound_to_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = accepted(tmp_path)
    me = site.site.participant
    me._place = Attempt(round_id=1, purpose="statistics", number=4)

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("lada_secure.storage.whole_files.replace_file", full)
    with pytest.raises(DiskError) as refused:
        write_atomically(tmp_path / "x", b"")
    tell_failed(me, refused.value)
    head = site.board.rows[-1][0].header
    assert (head.kind, head.round_id, head.purpose, head.attempt) == ("failed", 1, "statistics", 0)
    assert (head.plan_hash, head.roster_hash) == (PLAN.hash, CAST.roster.hash)
    assert ended_parties(me.index)["site-a"].code is FailureCode.DISK
    # The same end again says nothing new; another one does, in a place of its own.
    tell_failed(me, refused.value)
    tell_failed(me, LedgerError("x"))
    assert [body["code"] for body in endings(site)] == ["disk", "ledger"]
    assert site.board.rows[-1][0].header.attempt == 1
    # Whoever goes on has not ended any more.
    monkeypatch.undo()
    me.post(Kind.MASK_KEY, {"public_key": "9" * 64}, attempt=Attempt(purpose="statistics"))
    assert ended_parties(me.index) == {}


def test_a_party_that_starts_again_and_again_says_so_only_so_often(tmp_path: Path) -> None:
    site = accepted(tmp_path)
    errors: list[LadaError] = [DiskError("x"), LedgerError("x")]
    for number in range(3 * MOST_ENDINGS):
        tell_failed(site.site.participant, errors[number % 2])
    assert len(endings(site)) == MOST_ENDINGS


def test_what_is_refused_within_keeps_its_words_for_this_screen() -> None:
    with (
        pytest.raises(UnfitStudy, match="the model is gone") as refused,
        told_as(FailureCode.MODEL),
    ):
        raise ParameterError("the model is gone")
    assert refused.value.exit_status == 2
    assert refused.value.told is FailureCode.MODEL


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ([("the coordinator's pool", 3), ("records.jsonl", 7)], FailureCode.DOES_NOT_FIT),
        ([("records.jsonl", 7)], None),
    ],
)
def test_texts_that_are_too_long_are_told_for_the_public_pool_alone(
    faults: list[tuple[str, int]], told: FailureCode | None
) -> None:
    lines = [(name, Fault(line=line, what="too long")) for name, line in faults]
    with pytest.raises(ParameterError) as refused:
        gate._refuse_lengths(lines)
    assert all(f"{name}:{line}" in str(refused.value) for name, line in faults)
    assert getattr(refused.value, "told", None) is told


def test_a_model_that_only_long_records_make_too_large_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lada_clients.site.gates import memory

    def check(needed_by: set[str]) -> Callable[[object, object, str], None]:
        def refuse(_settings: object, _plan: object, sizes: str) -> None:
            if sizes in needed_by:
                raise ParameterError("the SLM does not fit")

        return refuse

    def sizes(_settings: object, _plan: object, files: object, _pool: object) -> str:
        return "none" if files is None else "records"

    nothing: Any = None
    files: Any = object()
    monkeypatch.setattr(memory, "_sizes", sizes)
    for needed_by, told in (
        ({"records"}, None),
        ({"records", "none"}, FailureCode.MEMORY),
    ):
        monkeypatch.setattr(memory, "_check", check(needed_by))
        with pytest.raises(ParameterError) as refused:
            memory.check_slm_memory(nothing, nothing, files, ())
        assert getattr(refused.value, "told", None) is told
