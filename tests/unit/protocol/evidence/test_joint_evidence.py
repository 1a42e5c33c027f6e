"""Evidence of several studies together: one ledger and one epsilon per population, or a fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from federation_world import SITE, Federation, backup_of, forged, granted
from simulated_site import FOUR
from typer.testing import CliRunner

from lada_clients.audit.commands import app
from lada_protocol.evidence.joint import verify_exports
from lada_protocol.evidence.study import verify_evidence


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Before its first study."""
    return Federation(folder=tmp_path)


def _exports(federation: Federation, studies: int) -> dict[str, dict[str, bytes]]:
    exports = {}
    for _ in range(studies):
        world = federation.finished()
        exports[world.plan.study_id] = federation.export(world)
    return exports


def test_two_studies_have_one_epsilon_per_population(federation: Federation) -> None:
    exports = _exports(federation, 2)
    found = verify_exports(exports)
    assert found.good
    assert [
        (one.summary.identity.site, one.summary.identity.population) for one in found.populations
    ] == [(name, "patients") for name in FOUR]
    first = found.populations[0]
    assert first.summary.epsilon == pytest.approx(federation.spent())
    assert first.exports == ("study-1", "study-2")
    # The order of the folders says nothing.
    again = verify_exports(dict(reversed(exports.items())))
    assert [one.summary for one in again.populations] == [one.summary for one in found.populations]


def test_two_auditors_that_saw_two_ledgers_of_one_population_show_it(
    tmp_path: Path,
) -> None:
    one, two = Federation(folder=tmp_path / "one"), Federation(folder=tmp_path / "two")
    exports = {"first": _exports(one, 1)["study-1"], "second": _exports(two, 1)["study-1"]}
    assert all(verify_evidence(files).good for files in exports.values())
    found = verify_exports(exports)
    assert not found.good
    assert len(found.faults) == len(FOUR)
    assert "ledger of site-a, population patients: forked: different ledgers" in found.faults[0]


def test_a_ledger_that_was_written_in_two_places_is_forked(tmp_path: Path) -> None:
    one = Federation(folder=tmp_path / "one")
    exports = _exports(one, 1)
    # The same ledgers go on at two auditors, neither of which knows of the other.
    kept = one.books[SITE]
    two = Federation(folder=tmp_path / "two", studies=1)
    two.books = {name: one.books[name] for name in FOUR[1:]}
    two.books[SITE] = backup_of(one.cast, kept, len(kept.entries()))
    exports.update(_exports(one, 1))
    two.studies = 2
    exports.update(_exports(two, 1))
    found = verify_exports(exports)
    assert [fault for fault in found.faults if "site-a" in fault] == [
        "ledger of site-a, population patients: forked: its entry 6 in study-3 is another one than "
        "in study-2"
    ] or [fault for fault in found.faults if "site-a" in fault] == [
        "ledger of site-a, population patients: forked: its entry 6 in study-2 is another one than "
        "in study-3"
    ]


def test_a_granted_restart_links_two_ledgers(federation: Federation) -> None:
    exports = _exports(federation, 1)
    spent = federation.spent()
    grant, federation.books[SITE] = granted(federation, federation.study())
    exports.update(_exports(federation, 1))
    found = verify_exports(exports)
    assert found.good
    first = found.populations[0]
    assert first.summary.restart == grant
    assert first.summary.epsilon > spent
    assert len(found.populations) == len(FOUR)


def test_a_restart_that_the_site_granted_itself_is_a_fault(
    federation: Federation, tmp_path: Path
) -> None:
    exports = _exports(federation, 1)
    grant, _ = granted(federation, federation.study())
    # Another auditor has no copy and takes the restarted ledger at its word.
    other = Federation(folder=tmp_path / "other", studies=federation.studies)
    _, own = forged(federation, grant)
    other.books = {**{name: federation.books[name] for name in FOUR[1:]}, SITE: own}
    world = other.finished()
    exports["other"] = other.export(world)
    alone = verify_evidence(exports["other"])
    assert any("not by the auditor's key" in fault for fault in alone.faults)
    assert not verify_exports(exports).good


def test_a_lost_ledger_that_went_on_is_a_fork(federation: Federation, tmp_path: Path) -> None:
    exports = _exports(federation, 1)
    lost = federation.books[SITE]
    _, restarted = granted(federation, federation.study())
    elsewhere = Federation(folder=tmp_path / "elsewhere", studies=3)
    elsewhere.books = {**federation.books, SITE: lost}
    exports.update(_exports(elsewhere, 1))
    federation.books[SITE] = restarted
    federation.studies = 5
    exports.update(_exports(federation, 1))
    found = verify_exports(exports)
    assert any("went on in study-4 after entry 5" in fault for fault in found.faults)


def test_the_command_takes_several_folders_and_tells_one_epsilon_each(
    federation: Federation, tmp_path: Path
) -> None:
    _exports(federation, 1)
    for name in FOUR:
        federation.books[name].renew_key(federation.cast.keys["auditor"], decided_by="dr-meyer")
        federation.books[name].renew_key(federation.cast.keys[name], decided_by="dr-meyer")
    _exports(federation, 1)
    folders = [str(tmp_path / f"out-study-{number}" / "export") for number in (1, 2)]
    done = CliRunner().invoke(app, ["verify", *folders])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    told = [line for line in lines if line.startswith("ledger site-a, population patients:")]
    assert len(told) == 1
    assert f"epsilon {federation.spent():.4f}" in told[0]
    assert "releases in 2 studies" in told[0]
    assert any("signing key was renewed on 2026-02-01 by dr-meyer" in line for line in lines)
    assert lines[-1] == "2 studies: all good"

    done = CliRunner().invoke(app, ["verify", *folders, "--json"])
    value = json.loads(done.output)
    assert value["good"] is True
    assert [one["study_id"] for one in value["exports"]] == ["study-1", "study-2"]
    assert [(one["site"], len(one["key_renewals"])) for one in value["populations"]] == [
        (name, 2) for name in FOUR
    ]
    assert value["populations"][0]["epsilon"] == pytest.approx(federation.spent())
    assert value["populations"][0]["restart"] is None


def test_a_fault_of_one_export_is_a_fault_of_all(federation: Federation, tmp_path: Path) -> None:
    _exports(federation, 2)
    folders = [tmp_path / f"out-study-{number}" / "export" for number in (1, 2)]
    (folders[0] / "transcripts" / "0.json").unlink()
    done = CliRunner().invoke(app, ["verify", *map(str, folders)])
    assert done.exit_code == 1
    assert f"WRONG  {folders[0]}: transcripts/0.json: the file is missing" in done.output
    assert "rounds of study study-2: all good" in done.output
    assert done.output.splitlines()[-1].endswith("faults")
