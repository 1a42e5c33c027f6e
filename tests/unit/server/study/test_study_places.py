"""Where the coordinator keeps one study after the other, and what `lada server studies` says."""

from __future__ import annotations

from pathlib import Path

import pytest
from protocol_world import make_plan

from lada_protocol.events import EVENTS_FILE, EventLog, Failed, Finished, StepFinished
from lada_secure.errors import ParameterError
from lada_secure.storage.state_folder import held_folder
from lada_server.settings import ServerSettings
from lada_server.study.places import (
    check_others_over,
    keep_outcome,
    known_studies,
    settings_of_open_study,
    settings_of_study,
    study_place,
)


def settings(folder: Path, database: str | None = None) -> ServerSettings:
    files = dict.fromkeys(("roster", "study", "pool", "cache_dir"), folder)
    return ServerSettings(
        party="coordinator", listen="localhost:1", state_dir=folder, llm="none", database=database,
        identity=folder / "identity", **files,
    )  # fmt: skip


def propose(folder: Path, study_id: str) -> Path:
    """As a coordinator does once its checks have passed."""
    place = study_place(folder, study_id)
    place.mkdir(parents=True, exist_ok=True)
    (place / "plan.json").write_bytes(make_plan(study_id=study_id).to_bytes())
    return place


def told(folder: Path, *kinds: type, code: str = "study_failed") -> None:
    with (folder / EVENTS_FILE).open("ab") as file:
        log = EventLog(party="coordinator", sink=file.write, clock=lambda: 1.7e9)
        for kind in kinds:
            more = {"message": "too few", "code": code} if kind is Failed else {}
            if kind is StepFinished:
                more = {"seconds": 1.0, "bytes_up": 1, "bytes_down": 1}
            log.write(kind, round_id=0, step="close", **more)


def test_the_first_study_lies_in_the_folder_and_each_later_one_in_its_own(tmp_path: Path) -> None:
    assert study_place(tmp_path, "first") == tmp_path
    propose(tmp_path, "first")
    for study in ("second", "third"):
        assert study_place(tmp_path, study) == tmp_path / "studies" / study
        propose(tmp_path, study)
    # A restart finds each again, in a folder of an earlier version, too.
    for study, place in (("first", tmp_path), ("second", tmp_path / "studies" / "second")):
        assert study_place(tmp_path, study) == place
        assert settings_of_study(settings(tmp_path), study).state_dir == place
    assert settings_of_study(settings(tmp_path), "second").database_url == (
        f"sqlite:///{tmp_path}/studies/second/board.sqlite"
    )


def test_a_database_belongs_to_one_study(tmp_path: Path) -> None:
    one, each = (
        "sqlite:////srv/board.sqlite",
        "postgresql://db/lada?options=-csearch_path%3D{study}",
    )
    assert settings_of_study(settings(tmp_path, one), "first").database_url == one
    propose(tmp_path, "first")
    assert settings_of_study(settings(tmp_path, one), "first").database_url == one
    with pytest.raises(ParameterError, match=r"write \{study\} in its URL"):
        settings_of_study(settings(tmp_path, one), "second")
    for study in ("first", "second"):
        found = settings_of_study(settings(tmp_path, each), study).database_url
        assert found == each.replace("{study}", study)


def test_a_study_is_not_begun_while_another_one_is_under_way(tmp_path: Path) -> None:
    first = propose(tmp_path, "first")
    check_others_over(tmp_path, "first")
    for _ in range(2):
        with pytest.raises(ParameterError, match=r"study first in .* is not over"):
            check_others_over(tmp_path, "second")
    keep_outcome(first, "failed", "2 sites take part, 3 are needed")
    check_others_over(tmp_path, "second")
    second = propose(tmp_path, "second")
    # Either one may be started again, whatever became of the other.
    check_others_over(tmp_path, "first")
    check_others_over(tmp_path, "second")
    with held_folder(second), pytest.raises(ParameterError, match=r"not over \(running\)"):
        check_others_over(tmp_path, "third")


@pytest.mark.parametrize(("event", "state"), [(Finished, "finished"), (Failed, "failed")])
def test_a_study_of_an_earlier_version_ended_as_its_events_say(
    tmp_path: Path, event: type, state: str
) -> None:
    propose(tmp_path, "first")
    told(tmp_path, StepFinished, event)
    (study,) = known_studies(tmp_path)
    assert (study.state, study.ended) == (state, None)
    check_others_over(tmp_path, "second")


def test_all_studies_are_told_oldest_first(tmp_path: Path) -> None:
    assert known_studies(tmp_path) == ()
    keep_outcome(tmp_path, "failed")
    assert not (tmp_path / "outcome.json").exists(), "nothing was proposed"
    first = propose(tmp_path, "first")
    keep_outcome(first, "finished")
    keep_outcome(first, "failed", "a later look")
    second = propose(tmp_path, "second")
    told(second, StepFinished, StepFinished)
    with held_folder(second):
        found = known_studies(tmp_path)
    assert [(one.study_id, one.state, one.rounds_done) for one in found] == [
        ("first", "finished", found[0].rounds),
        ("second", "running", 1),
    ]
    assert [one.folder for one in found] == [str(first), str(second)]
    assert found[0].ended is not None
    (second / "plan.json").write_bytes(b"{")
    with pytest.raises(ParameterError, match="cannot read the kept plan"):
        known_studies(tmp_path)


def test_a_proposal_that_is_taken_back_leaves_its_folder_to_the_next_one(tmp_path: Path) -> None:
    # Nothing is under way: a study has its own folder.
    assert settings_of_open_study(settings(tmp_path), "first").state_dir == tmp_path
    keep_outcome(propose(tmp_path, "first"), "finished")
    second = propose(tmp_path, "second")
    found = settings_of_open_study(settings(tmp_path), "second-b")
    assert found.state_dir == second
    assert found.database_url == f"sqlite:///{second}/board.sqlite"
    # As the command does: the same board has another plan now, under another name.
    (second / "plan.json").write_bytes(make_plan(study_id="second-b").to_bytes())
    check_others_over(tmp_path, "second-b")
    assert settings_of_study(settings(tmp_path), "second-b").state_dir == second
    named = settings(tmp_path, "postgresql://db/lada?options=-csearch_path%3D{study}")
    with pytest.raises(ParameterError, match="a database of its name"):
        settings_of_open_study(named, "second-c")
    with pytest.raises(ParameterError, match="that of an earlier study"):
        settings_of_open_study(settings(tmp_path), "first")


@pytest.mark.parametrize("code", ["parameter", "transport", "disk"])
def test_what_stopped_a_process_alone_ends_no_study(tmp_path: Path, code: str) -> None:
    propose(tmp_path, "first")
    told(tmp_path, StepFinished, Failed, code=code)
    assert known_studies(tmp_path)[0].state == "interrupted"
    with pytest.raises(ParameterError, match="is not over"):
        check_others_over(tmp_path, "second")
    # One that went on after all.
    told(tmp_path, Failed, StepFinished)
    assert known_studies(tmp_path)[0].state == "interrupted"
