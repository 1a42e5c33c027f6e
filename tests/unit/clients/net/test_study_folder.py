"""What a party keeps lies in a folder of its study, and no study reads another one's."""

from __future__ import annotations

from pathlib import Path

import pytest
from protocol_world import Cast, MemoryBoard, make_cast, make_participant, make_plan, signed

from lada_clients.audit.folder import read_evidence
from lada_clients.auditor.runner import export_folder
from lada_clients.net.participant import Participant
from lada_clients.net.study_folder import SecretFolder, find_study_folder
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan, parse_plan
from lada_secure.errors import ParameterError


def _joined(cast: Cast, plan: StudyPlan, folder: Path) -> Participant:
    """Site-a, which has joined a study on a board of its own."""
    board = MemoryBoard(cast.roster)
    body = {"certificate": cast.certificates["coordinator"]}
    key = cast.keys["coordinator"]
    raw = plan.to_bytes()
    board.post(signed(cast.roster, key, plan, Kind.PLAN, "coordinator", body, raw), raw)
    me = make_participant(cast, board, "site-a", folder)
    me.join(wait_s=5.0)
    return me


def test_two_studies_in_one_state_folder_keep_everything_apart(tmp_path: Path) -> None:
    cast = make_cast()
    plans = [make_plan(), make_plan(study_id="study-2", seed=2), make_plan(seed=3)]
    folders = []
    for plan in plans:
        me = _joined(cast, plan, tmp_path)
        folders.append(me.open_folder())
        me.post(Kind.CLOSE, {"transcript_sha256": "0" * 64})
        assert parse_plan((folders[-1] / "plan.json").read_bytes()) == plan
        assert len(list((folders[-1] / "outbox").iterdir())) == 2
    assert len(set(folders)) == 3
    assert [one.parent for one in folders] == [tmp_path / "studies"] * 3
    assert [one.name for one in tmp_path.iterdir()] == ["studies"]


def test_a_study_is_found_by_its_id_or_by_its_folder(tmp_path: Path) -> None:
    cast = make_cast()
    with pytest.raises(ParameterError, match="no study here yet"):
        find_study_folder(tmp_path, None)
    first = _joined(cast, make_plan(), tmp_path).open_folder()
    assert find_study_folder(tmp_path, None) == first
    again = _joined(cast, make_plan(seed=2), tmp_path).open_folder()
    with pytest.raises(ParameterError, match="several studies; name one: study-1-"):
        find_study_folder(tmp_path, "study-1")
    assert find_study_folder(tmp_path, again.name) == again


def test_a_later_study_is_exported_beside_the_first_one_and_touches_nothing_of_it(
    tmp_path: Path,
) -> None:
    first, second = make_plan(), make_plan(study_id="study-2")
    assert export_folder(tmp_path, first) == tmp_path
    (tmp_path / "plan.json").write_bytes(first.to_bytes())
    own = tmp_path / "studies" / f"study-2-{second.hash[:16]}"
    for _ in range(2):
        assert export_folder(tmp_path, first) == tmp_path
        assert export_folder(tmp_path, second) == own
        own.mkdir(parents=True, exist_ok=True)
        (own / "plan.json").write_bytes(second.to_bytes())
    assert export_folder(tmp_path, make_plan(study_id="study-2", seed=5)) not in (own, tmp_path)


def test_evidence_without_its_plan_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "messages.jsonl").write_text("of somebody")
    assert export_folder(tmp_path, make_plan()).parent == tmp_path / "studies"


def test_the_evidence_of_one_study_holds_nothing_of_those_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "export"
    later = out / "studies" / "study-2-0123456789abcdef"
    later.mkdir(parents=True)
    (out / "plan.json").write_bytes(b"1")
    (later / "plan.json").write_bytes(b"2")
    assert read_evidence(out) == read_evidence(tmp_path) == {"plan.json": b"1"}
    assert read_evidence(later) == {"plan.json": b"2"}


def test_a_secret_that_two_processes_make_at_once_is_the_first_ones(tmp_path: Path) -> None:
    secrets = SecretFolder(folder=tmp_path)

    def make() -> bytes:
        # The other process is quicker, between our look and our writing.
        SecretFolder(folder=tmp_path).once("key", lambda: b"theirs")
        return b"ours"

    assert secrets.once("key", make) == b"theirs" == secrets.once("key", lambda: b"later")
    assert [one.name for one in tmp_path.iterdir()] == ["key"]
